"""Two methods side by side, user by user: the mean difference, and its interval where seeds are enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from spectran_jax.statistics import ADVISED_SEEDS, MINIMUM_SEEDS, bootstrap_interval, mean_over_seeds
from spectran_jax.studies.jobs import Outcome

INTERVALS = (
    f"Intervals are over users, for these seeds, and not corrected for the number of rows; one needs {MINIMUM_SEEDS} "
    f"seeds, better {ADVISED_SEEDS}."
)
"""For the note of a table that holds some."""


class Difference(NamedTuple):
    """Of the mean NDCG@10 of two methods."""

    mean: float
    low: float | None
    """Of the 95 % interval over users; None for too few seeds, whose luck it would not show."""
    high: float | None
    seeds: int
    """That both have, over which the difference is."""

    def __str__(self) -> str:
        """`+0.0012 [+0.0003, +0.0021]`, or the difference alone."""
        interval = "" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.mean:+.4f}{interval}"


class Paired(NamedTuple):
    """Each user's NDCG@10 by two methods, averaged over the seeds that both have."""

    ours: Float[np.ndarray, "U"]
    theirs: Float[np.ndarray, "U"]
    seeds: int

    @property
    def enough(self) -> bool:
        """Whether the seeds are as many as tests and intervals need."""
        return self.seeds >= MINIMUM_SEEDS


def paired(ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome]) -> Paired | None:
    """Two methods side by side, from their runs that came to their end, by seed; None where they share no seed.

    Raises:
      InputError: runs that ranked other users or targets.
    """
    shared = [seed for seed in ours if seed in theirs]
    if not shared:
        return None
    mine, others = (mean_over_seeds([each[seed].ranks() for seed in shared]) for each in (ours, theirs))
    return Paired(mine, others, len(shared))


def difference(
    ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome], users: Bool[np.ndarray, "U"] | None = None
) -> Difference | None:
    """What one method's NDCG@10 has over another's, over all or some users and the seeds that both have.

    Args:
      ours: runs that came to their end, by seed.
      theirs: those of the other method.
      users: whom it is over; all if None.

    Returns:
      None where there is nothing to compare.

    Raises:
      InputError: runs that ranked other users or targets.
    """
    both = paired(ours, theirs)
    if both is None:
        return None
    differences = (both.ours - both.theirs)[... if users is None else users]
    if not len(differences):
        return None
    if not both.enough:
        return Difference(float(differences.mean()), None, None, both.seeds)
    return Difference(*bootstrap_interval(differences), both.seeds)
