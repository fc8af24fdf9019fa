"""One method against its rivals: gains, tests over users, intervals, and which rival is the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spectran_jax import statistics
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.studies.differences import paired
from spectran_jax.studies.search import Found

TEST_METRIC = "ndcg@10"
"""The metric of gains, tests and mean ranks."""

Place = tuple[str, str]
"""Data set and backbone: where methods meet."""

Cells = dict[tuple[str, str, str], Found]
"""By data set, backbone and item encoder."""


@dataclasses.dataclass(frozen=True)
class Versus:
    """The target method against one rival in one place."""

    place: Place
    rival: str
    gain: float | None
    """Relative, of the mean test metric; None where the rival's is 0."""
    p: float | None
    """Corrected for all comparisons of the experiment; None for too few seeds."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over users of the gain; None for too few seeds, or where the rival serves too few users
    for one."""
    seeds: int
    """That both have, over which gain, p and interval are."""


def against_rivals(cells: Cells, places: Sequence[Place], encoders: Sequence[str], target: str) -> list[Versus]:
    """The target against each rival in each place where both have runs of the same seeds.

    The p-values are of sign-flip tests over users on NDCG@10, each user's mean over seeds, corrected by Holm for all
    comparisons together.
    """
    made: list[Versus] = []
    for place in places:
        for rival in encoders:
            both = None if rival == target else paired(cells[*place, target].done, cells[*place, rival].done)
            if both is None:
                continue
            p = statistics.sign_flip_test(both.ours - both.theirs) if both.enough else None
            gain, bounds = None, None
            if both.theirs.mean() > 0:
                gain, low, high = statistics.gain_interval(both.ours, both.theirs)
                bounds = (low, high) if both.enough and np.isfinite([low, high]).all() else None
            made.append(Versus(place, rival, gain, p, bounds, both.seeds))
    tested = [i for i, each in enumerate(made) if each.p is not None]
    corrected = dict(zip(tested, statistics.holm([made[i].p or 0.0 for i in tested]), strict=True))
    return [dataclasses.replace(each, p=corrected.get(i)) for i, each in enumerate(made)]


def best_rival(cells: Cells, place: Place, versus: Sequence[Versus]) -> Versus | None:
    """The rival of the best mean validation metric over seeds: chosen without a look at the test set.

    Among those with as many seeds as p-values need, or as the most that any has where that is less: runs that failed
    could else leave one lucky seed.
    """
    here = [each for each in versus if each.place == place]
    enough = min(statistics.MINIMUM_SEEDS, max((each.seeds for each in here), default=0))

    def on_validation(each: Versus) -> float:
        return float(np.mean(cells[*place, each.rival].values(SELECTION_METRIC, "valid")))

    return max((each for each in here if each.seeds >= enough), key=on_validation, default=None)
