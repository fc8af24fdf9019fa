"""How names and numbers are written, the same on the page and in the terminal."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

_ACRONYMS = {"hr", "ndcg", "mrr", "id", "ids", "svd"}
_FOUR_DIGITS = ("hr@", "ndcg@", "mrr", "coverage")


def label(name: str) -> str:
    """A key as words: `ndcg@20` is NDCG@20, `tied_targets` is Tied targets."""
    words = name.replace("_", " ").replace("/", " / ").split()
    parts = []
    for i, word in enumerate(words):
        head, at, tail = word.partition("@")
        head = head.upper() if head.lower() in _ACRONYMS else head.capitalize() if i == 0 else head
        parts.append(head + at + tail)
    return " ".join(parts)


def metric(name: str, value: float) -> str:
    """The value of a metric: four digits for those between 0 and 1, otherwise as `number`."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if name.startswith(_FOUR_DIGITS) else number(value)


def spread(name: str, mean: float, std: float) -> str:
    """`0.0402 ± 0.0003`: a mean and its standard deviation, which has two digits and says how many the mean has.

    Metrics have four decimals as ever, other means five digits at most; a deviation that is rounding alone is 0.
    """
    plain = name.startswith(_FOUR_DIGITS) or not (math.isfinite(mean) and math.isfinite(std))
    if plain or std <= 1e-6 * abs(mean):
        return f"{metric(name, mean)} ± {metric(name, std if plain else 0)}"
    digits = lambda value: int(f"{value:.1e}".partition("e")[2])  # noqa: E731
    decimals = max(0, min(1 - digits(std), 4 - digits(mean)))
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def number(value: Any) -> str:
    """A number for people: counts with separators, four significant digits else; text as it is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "–"
    if isinstance(value, numbers.Integral) or (number == int(number) and abs(number) >= 1000):
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def count(number: int, noun: str) -> str:
    """A number of things whose plural ends in s: `1 seed`, `3 seeds`, `12,101 users`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_LEFT_OUT = {
    "unknown_items": ("interaction", "with unknown items"),
    "duplicates": ("interaction", "of the same user, item and time as another"),
    "k_core_interactions": ("interaction", "outside the k-core"),
    "k_core_items": ("item", "outside the k-core"),
    "k_core_users": ("user", "outside the k-core"),
    "users_of_unknown_items_only": ("user", "of unknown items alone"),
    "users_too_short": ("user", "with too few interactions to split"),
    "older_interactions": ("interaction", "older than those that are kept of a user"),
}
"""What the counts of `Dataset.dropped` and of a reduction are of."""


def left_out(reason: str, number: int) -> str:
    """How many of what were left out, and why: `2 users outside the k-core`."""
    if reason not in _LEFT_OUT:
        return f"{number:,} {reason.replace('_', ' ')}"
    noun, why = _LEFT_OUT[reason]
    return f"{count(number, noun)} {why}"


def reduced(counts: Mapping[str, int]) -> list[str]:
    """What `data.reduction.reduce_interactions` counted, a line each."""
    counts = dict(counts)
    lines = [f"{name}: {counts.pop(name):,}" for name in ("files", "users", "interactions")]
    if tied := counts.pop("placed_by_file_order", 0):
        lines.append(f"placed by file order: {tied:,}")
    if again := counts.pop("said_again", 0):
        lines.append(f"said again: {again:,}, the same user, item and time; --duplicates=drop takes each once")
    return lines + [f"left out: {left_out(reason, number)}" for reason, number in counts.items()]


def percent(share: float) -> str:
    """A share between 0 and 1 in per cent, two significant digits below ten."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 0.1 else f"{value:.2g} %"


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 100:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def splits(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json holds of the sets that were read, by the title of each."""
    return {title: metrics[key] for key, title in (("valid", "Validation"), ("test", "Test")) if metrics.get(key)}


def ordered_metrics(*groups: Any) -> list[str]:
    """The scalar metrics of some mappings, in the order of a results table: NDCG and HR by K, then MRR, then others."""
    names = {
        name
        for group in groups
        if group
        for name, value in group.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }

    def key(name: str) -> tuple[int, int, str]:
        head, _, k = name.partition("@")
        kind = {"ndcg": 0, "hr": 1, "mrr": 2, "users": 9}.get(head, 3)
        return kind, int(k) if k.isdigit() else 0, name

    return sorted(names, key=key)
