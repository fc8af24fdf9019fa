"""The spectrum of what a trained item encoder makes of the text alone, kept beside the run.

The vectors that are scored are text and IDs together, and IDs of full rank would hide an adapter that collapsed.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jax.numpy as jnp

from spectran_jax.training import catalogue
from spectran_jax.writing import write_json

FILE = "text_part.json"


def text_singular_values(folder: Path, digest: str) -> list[float]:
    """Singular values of the centred item vectors with every ID at zero, of the items that training sees; descending.

    They are the vectors that these items would have had they come after training. All zero for an encoder that
    leaves nothing without IDs (`id`, `llminit`).

    Args:
      folder: of a finished run. The values are taken from its best checkpoint the first time, and kept.
      digest: of its best parameters, from metrics.json; what was kept of others, before the run went on, is made again.

    Raises:
      InputError: where the folder holds no trained run, or its data is gone.
    """
    path = folder / FILE
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["digest"] == digest:
            return list(map(float, kept["singular_values"]))
    values = _of_best(folder)
    write_json(path, {"digest": digest, "singular_values": values})
    return values


def _of_best(folder: Path) -> list[float]:
    from spectran_jax.training.engine import singular_values
    from spectran_jax.training.programs import build_programs
    from spectran_jax.training.restore import load_run

    setup, params = load_run(folder)
    programs, frozen = build_programs(setup, total_steps=1), setup.place()
    without_ids = catalogue.map_item_rows(jnp.zeros_like, setup.model.item_encoder.item_params, params)
    return singular_values(programs, programs.table(without_ids, frozen), frozen)
