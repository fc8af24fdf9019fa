"""One method against its rivals: gains, tests over users, intervals, and which rival is the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spectran_jax import statistics
from spectran_jax.studies.search import SELECTION_METRIC, Found

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
    gain: float
    """Relative, of the mean test metric."""
    p: float | None
    """Corrected for all comparisons of the experiment; None for too few seeds."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over users of the gain."""


def against_rivals(cells: Cells, places: Sequence[Place], encoders: Sequence[str], target: str) -> list[Versus]:
    """The target against each rival in each place where both have runs of the same seeds.

    The p-values are of sign-flip tests over users on NDCG@10, each user's mean over seeds, corrected by Holm for all
    comparisons together.
    """
    made: list[tuple[Place, str, float, float | None, tuple[float, float] | None]] = []
    for place in places:
        ours = cells[*place, target]
        for rival in encoders:
            theirs = cells[*place, rival]
            shared = [seed for seed in ours.done if seed in theirs.done]
            if rival == target or not shared:
                continue
            mine, others = (
                statistics.mean_over_seeds([each.done[seed].ranks() for seed in shared]) for each in (ours, theirs)
            )
            p = None
            if len(shared) >= statistics.MINIMUM_SEEDS:
                p = statistics.sign_flip_test(mine - others)
            level = float(others.mean())
            if level == 0:
                made.append((place, rival, np.nan, p, None))
                continue
            interval = statistics.bootstrap_interval(mine - others)
            bounds = (interval.low / level, interval.high / level)
            made.append((place, rival, interval.mean / level, p, bounds))
    tested = [i for i, each in enumerate(made) if each[3] is not None]
    corrected = dict(zip(tested, statistics.holm([made[i][3] or 0.0 for i in tested]), strict=True))
    return [
        Versus(place, rival, gain, corrected.get(i), interval)
        for i, (place, rival, gain, _, interval) in enumerate(made)
        if np.isfinite(gain)
    ]


def best_rival(cells: Cells, place: Place, versus: Sequence[Versus]) -> Versus | None:
    """The rival of the best mean validation metric over seeds: chosen without a look at the test set."""

    def on_validation(each: Versus) -> float:
        return float(np.mean(cells[*place, each.rival].values(SELECTION_METRIC, "valid")))

    return max((each for each in versus if each.place == place), key=on_validation, default=None)
