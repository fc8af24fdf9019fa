"""The spectrum of what a trained item encoder makes of the text alone, kept beside the run.

The vectors that are scored are text and IDs together, and IDs of full rank would hide an adapter that collapsed.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from spectran_jax.studies.kept import kept, model_of
from spectran_jax.training import catalogue

FILE = "text_part.npz"
_NAME = "singular_values"


def text_singular_values(folder: Path, digest: str) -> list[float]:
    """Singular values of the centred item vectors with every ID at zero, of the items that training sees; descending.

    They are the vectors that these items would have had they come after training. All zero for an encoder that
    leaves nothing without IDs (`id`, `rlmrec`); of `llminit`, its frozen start.

    Args:
      folder: of a finished run. The values are taken from its best checkpoint the first time, and kept.
      digest: of its best parameters, from metrics.json; what was kept of others, before the run went on, is made again.

    Raises:
      InputError: as `model_of`.
    """
    values = kept(folder / FILE, digest, _NAME, lambda: {_NAME: np.asarray(_of_best(folder, digest), np.float64)})
    return [float(value) for value in values[_NAME]]


def _of_best(folder: Path, digest: str) -> list[float]:
    from spectran_jax.training.engine import singular_values
    from spectran_jax.training.programs import build_programs

    setup, params = model_of(folder, digest)
    programs, frozen = build_programs(setup, total_steps=1), setup.place()
    without_ids = catalogue.map_item_rows(jnp.zeros_like, setup.model.item_encoder.item_params, params)
    return singular_values(programs, programs.table(without_ids, frozen), frozen)
