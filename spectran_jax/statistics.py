"""Whether one method is better than another: tests over users, corrected for their number, and intervals.

All of it is paired: the same users, the same targets, two methods. A test over users says how far the difference would
carry over to other users like these, for models trained with these seeds; the spread over seeds is shown beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from spectran_jax.errors import InputError
from spectran_jax.metrics import gains
from spectran_jax.ranks import Ranks

MINIMUM_SEEDS = 3
"""Below this no p-value is given: the mean over seeds would still be mostly luck."""

ADVISED_SEEDS = 5
"""What a comparison should have."""

PERMUTATIONS = 9999
EXACT_UP_TO = 16
"""Differences other than 0 up to which all sign flips are enumerated."""

_CHUNK = 2**22
"""Signs drawn at once."""


def mean_over_seeds(runs: Sequence[Ranks], k: int = 10) -> Float[np.ndarray, "U"]:
    """NDCG@K of each user, averaged over the runs of one method with different seeds.

    Raises:
      InputError: no run, or runs that ranked other users or targets.
    """
    if not runs:
        raise InputError("There is no run to average over.")
    for run in runs:
        same_targets(runs[0], run)
    return np.mean([gains(f"ndcg@{k}", run.rank) for run in runs], axis=0)


def same_targets(a: Ranks, b: Ranks) -> None:
    """Raises `InputError` where two runs do not rank the same targets of the same users, in one order."""
    if not (np.array_equal(a.user, b.user) and np.array_equal(a.item, b.item)):
        raise InputError("The runs ranked other users or targets, so they can't be paired; run them on the same data.")


def sign_flip_test(differences: Float[np.ndarray, "U"], *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test of the mean against zero.

    Were the two methods alike, the sign of each user's difference would be a coin's. The p-value is the share of sign
    flips whose mean is at least as far from zero, the observed one counted: all 2^n of them up to n = 16 differences
    other than 0, else `permutations` random ones. Differences of 0 change no mean and are left out.

    Args:
      differences: of two methods, a user each.
      permutations: random flips.
      seed: of the random flips.

    Returns:
      In (0, 1]; at least 1 / (permutations + 1), or 2^(1 - n) where exact. 1 where all differences are 0.

    Raises:
      InputError: a difference that is not finite.

    References:
      Fisher, The Design of Experiments, 1935; for retrieval: Smucker, Allan and Carterette, CIKM 2007.
    """
    values = np.asarray(differences, np.float64)
    if odd := np.count_nonzero(~np.isfinite(values)):
        raise InputError(
            f"{odd} of {len(values)} differences are not finite; test those of users who have both values."
        )
    values = values[values != 0]
    n = len(values)
    if not n:
        return 1.0
    # Sums that differ by rounding alone are equal.
    bar = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ values) >= bar))
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, rows := max(1, _CHUNK // n)):
        count = min(rows, permutations - start)
        bits = np.unpackbits(rng.integers(0, 256, (count, -(-n // 8)), np.uint8), axis=1, count=n)
        # A sum of signs times values is the sum of all less twice the sum of those that are flipped.
        sums = values.sum() - 2 * (bits.astype(np.float64) @ values)
        extreme += int(np.count_nonzero(np.abs(sums) >= bar))
    return (extreme + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in their order.

    The i-th smallest of m is multiplied by m - i + 1; none comes out below a smaller one's, or above 1.

    References:
      Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


class Interval(NamedTuple):
    """A mean, and the interval around it."""

    mean: float
    low: float
    high: float


def t_interval(differences: Sequence[float] | Float[np.ndarray, "n"], level: float = 0.95) -> Interval:
    """Student's interval of a mean: of the paired differences of seeds, which are few.

    Raises:
      InputError: fewer than two values.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    n = len(values)
    if n < 2:
        raise InputError(f"An interval over seeds needs at least 2, got {n}; give more --seeds.")
    mean = float(values.mean())
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    differences: Float[np.ndarray, "U"], level: float = 0.95, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean of paired differences, users drawn with replacement.

    Raises:
      InputError: no differences.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    values = np.asarray(differences, np.float64)
    return _percentiles(float(values.mean()), _means_of_draws(values[:, None], draws, seed)[:, 0], level)


def gain_interval(
    ours: Float[np.ndarray, "U"],
    theirs: Float[np.ndarray, "U"],
    level: float = 0.95,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the relative gain mean(ours) / mean(theirs) - 1, users drawn with replacement.

    Both means are those of the users drawn, as both are estimates. An end is not finite where so many draws hold no
    user whom the other serves; all is NaN where neither method serves anybody.

    Raises:
      InputError: no users.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    values = np.stack([np.asarray(each, np.float64) for each in (ours, theirs)], axis=1)
    drawn = _means_of_draws(values, draws, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = drawn[:, 0] / drawn[:, 1] - 1
        return _percentiles(float(values[:, 0].mean() / values[:, 1].mean() - 1), gains[~np.isnan(gains)], level)


def _means_of_draws(values: Float[np.ndarray, "U c"], draws: int, seed: int) -> Float[np.ndarray, "draws c"]:
    if not len(values):
        raise InputError("There is no user to draw.")
    # How often each distinct row is drawn is multinomial: most users are served alike, so there are few.
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(distinct))
    sizes = [min(rows, draws - start) for start in range(0, draws, rows)]
    drawn = [rng.multinomial(len(values), counts / len(values), size) @ distinct for size in sizes]
    return np.concatenate(drawn) / len(values)


def _percentiles(mean: float, drawn: Float[np.ndarray, "draws"], level: float) -> Interval:
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2]) if len(drawn) else (np.nan, np.nan)
    return Interval(mean, float(low), float(high))


def mean_ranks(scores: Float[np.ndarray, "cases methods"]) -> Float[np.ndarray, "methods"]:
    """The mean rank of each method over cases such as data sets; 1 is best, ties share their ranks' mean.

    Cases in which a method has no score (NaN) are left out for all.

    Returns:
      `[methods]`; NaN where no case has all scores.
    """
    from scipy import stats

    scores = np.asarray(scores, np.float64)
    whole = scores[~np.isnan(scores).any(axis=1)]
    if not len(whole):
        return np.full(scores.shape[1], np.nan)
    return np.asarray(stats.rankdata(-whole, axis=1).mean(axis=0))


def too_few_seeds(count: int) -> str:
    """Why `count` seeds give no p-value, and how many would; empty where they do."""
    if count >= MINIMUM_SEEDS:
        return ""
    return (
        f"No p-values: {count} seed{'s are' if count != 1 else ' is'} too few for a test; give at least "
        f"{MINIMUM_SEEDS} --seeds, better {ADVISED_SEEDS}."
    )
