"""What runs logged through training: the lines of metrics.jsonl, and the course of one value in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spectran_jax.errors import InputError
from spectran_jax.training.workdir import read_log

History = Sequence[Mapping[str, Any]]

SHARED = "up to the last step that all of them came to"
"""How far a `mean_course` goes."""


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, as `read_log` takes them.

    Raises:
      InputError: where the folder has none.
    """
    path = folder / "metrics.jsonl"
    try:
        return read_log(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {folder} holds no run.") from None


def course(history: History, key: str) -> tuple[np.ndarray, list[Any]]:
    """Steps [n] and values [n] of one key, at the start and at each validation."""
    found = [(line["step"], line[key]) for line in history if line["kind"] in ("start", "valid") and key in line]
    return np.array([step for step, _ in found]), [value for _, value in found]


def value_at(history: History, key: str, step: int) -> Any:
    """The value at a step, such as the best one; None where the key was not read there."""
    steps, values = course(history, key)
    at = np.flatnonzero(steps == step)
    return values[at[-1]] if len(at) else None


def mean_course(histories: Sequence[History], key: str) -> tuple[np.ndarray, Float[np.ndarray, "n ..."]]:
    """Steps that all histories read, and the mean over the histories of what they read there: runs that stop early
    leave the others fewer steps to share."""
    found = [dict(zip(steps.tolist(), values, strict=True)) for steps, values in (course(h, key) for h in histories)]
    if not found:
        return np.zeros(0), np.zeros(0)
    shared = sorted(set.intersection(*(set(values) for values in found)))
    return np.array(shared), np.mean([[values[step] for step in shared] for values in found], axis=0)
