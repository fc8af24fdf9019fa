"""Dimension collapse in numbers, of the singular values of item vectors at one step.

Effective rank is exp of the entropy of the singular values, made to sum to one (Roy and Vetterli, EUSIPCO 2007).
Information abundance is their sum over the largest (Guo et al., On the Embedding Collapse when Scaling up
Recommendation Models, ICML 2024, definition 1). Both lie between 1, where one direction holds everything, and d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from spectran_jax.report.statistics import effective_rank

KEY = "item_singular_values"
"""In the `start` and `valid` lines of metrics.jsonl: of the centred vectors that are scored, descending."""


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
