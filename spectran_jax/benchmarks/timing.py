"""Timing that a shared machine can't bend: sides in turn, ratios of neighbours, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Ratio(NamedTuple):
    """The median of paired ratios, with the lowest and the highest."""

    median: float
    low: float
    high: float


class Paired:
    """Figures of several sides, taken in turn: entry i of one was taken beside entry i of the others."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        self.values = dict(values)

    def median(self, name: str) -> float:
        """Of one side."""
        return statistics.median(self.values[name])

    def ratio(self, name: str, over: str) -> Ratio:
        """Of `name` over `over`, pair by pair."""
        ratios = [a / b for a, b in zip(self.values[name], self.values[over], strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> Paired:
    """Calls each side, a, b, a, b, ..., `repeats` times, and keeps the figures that they return."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            values[name].append(side())
    return Paired(values)


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Paired:
    """Seconds a call of each side, a, b, a, b, ..., after one warm-up of each.

    Args:
      sides: what to time; returns arrays that are waited for, or anything else.
      repeats: figures of each side.
      calls: calls in each figure; the last result is waited for, so that dispatch overlaps work as in a real loop.
      clock: seconds.
    """

    def timed(side: Callable[[], Any]) -> float:
        start = clock()
        for _ in range(calls):
            result = side()
        jax.block_until_ready(result)
        return (clock() - start) / calls

    for side in sides.values():
        jax.block_until_ready(side())
    return in_turn({name: lambda side=side: timed(side) for name, side in sides.items()}, repeats)  # type: ignore[misc]
