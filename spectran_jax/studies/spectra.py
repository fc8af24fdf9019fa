"""Dimension collapse in numbers: of the singular values of item vectors, at one step and through training.

Effective rank is exp of the entropy of the singular values, made to sum to one (Roy and Vetterli, EUSIPCO 2007).
Information abundance is their sum over the largest (Guo et al., On the Embedding Collapse when Scaling up
Recommendation Models, ICML 2024, definition 1). Both lie between 1, where one direction holds everything, and d.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from spectran_jax.errors import InputError
from spectran_jax.report.statistics import effective_rank

KEY = "item_singular_values"
"""In the `start` and `valid` lines of metrics.jsonl: of the centred vectors that are scored, descending."""

History = Sequence[Mapping[str, Any]]


def information_abundance(singular_values: Float[np.ndarray, "d"]) -> float:
    """Sum over the largest; 0.0 where all are zero."""
    values = np.asarray(singular_values, np.float64)
    return float(values.sum() / values.max()) if values.any() else 0.0


class Collapse(NamedTuple):
    """The state of the item vectors at a step."""

    effective_rank: float
    information_abundance: float
    top_energy: float
    """Share of the variance along the strongest direction."""


def collapse(singular_values: Sequence[float] | Float[np.ndarray, "d"]) -> Collapse:
    """The measures of one spectrum; zeros where the vectors are all alike."""
    values = np.asarray(singular_values, np.float64)
    square = values**2
    top = float(square.max() / square.sum()) if values.any() else 0.0
    return Collapse(effective_rank(values), information_abundance(values), top)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that a crash tore is left out.

    Raises:
      InputError: where the folder has none.
    """
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {folder} holds no run.") from None
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and {"kind", "step"} <= line.keys()]


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
