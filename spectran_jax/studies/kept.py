"""What a study took out of a run's best checkpoint, kept beside the run: restoring a model takes a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spectran_jax.npz import read_arrays
from spectran_jax.writing import write_arrays


def kept(path: Path, digest: str, required: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; made anew where there is none, a damaged one, or one of other parameters.

    Args:
      path: .npz, in the folder of the run.
      digest: of the run's best parameters, from metrics.json: a run that goes on may find others.
      required: the array without which a file is no such file.
      make: takes them from the checkpoint.
    """
    with contextlib.suppress(OSError, ValueError):
        found = read_arrays(path)
        if str(found.pop("digest", "")) == digest and required in found:
            return found
    made = dict(make())
    write_arrays(path, {**made, "digest": np.asarray(digest)})
    return made
