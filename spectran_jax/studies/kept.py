"""What a study took out of a run's best checkpoint, kept beside the run: restoring a model takes a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectran_jax.digest import code_digest, params_digest
from spectran_jax.errors import InputError
from spectran_jax.npz import read_arrays
from spectran_jax.writing import write_arrays

if TYPE_CHECKING:  # it imports every module of a model
    from spectran_jax.training.setup import Setup


def kept(path: Path, digest: str, required: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; made anew where there is none, a damaged one, or one of other parameters or code.

    Args:
      path: .npz, in the folder of the run.
      digest: of the run's best parameters, from metrics.json, as a run that goes on may find others; and of whatever
        else the arrays follow from.
      required: the array without which a file is no such file.
      make: takes them from the checkpoint.
    """
    digest = f"{digest} {code_digest()}"
    with contextlib.suppress(OSError, ValueError):
        found = read_arrays(path)
        if str(found.pop("digest", "")) == digest and required in found:
            return found
    made = dict(make())
    write_arrays(path, {**made, "digest": np.asarray(digest)})
    return made


def model_of(folder: Path, digest: str) -> tuple[Setup, Any]:
    """The set-up of a run and its best parameters, those of this digest.

    Raises:
      InputError: where the folder holds no trained run, its data is gone, or it holds other parameters: the checkpoint
        is damaged and the one before was read, or the run has gone on.
    """
    from spectran_jax.training.restore import load_run

    setup, params = load_run(folder)
    if params_digest(params) != digest:
        raise InputError(
            f"--workdir={folder} no longer holds the parameters that its metrics are of: their checkpoint is damaged, "
            "or training has gone on. Delete this folder, and the same command trains the run anew."
        )
    return setup, params
