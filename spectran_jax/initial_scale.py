"""Where the spectral attention starts: the spread of Q and K and the threshold, from d, r and two shares.

docs/scale.md has the derivation. The paper leaves the initialisation open.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.errors import unknown_name

_MIN_LIVE_PER_ROW = 8.0
"""Expected live entries of a row that has no diagonal to rest on; all dead with probability below e^-8."""

_MIN_SOFTMAX_SPREAD = 0.1
"""At zero spread Q = K = 0, a saddle point without gradient."""

_MAX_SOFTMAX_ENERGY = 0.5
"""A softmax row near energy 1 is one-hot and passes no gradient."""


def softshrink_energy(ratio: float) -> float:
    """E[softshrink(z, t)^2] of a standard normal z at threshold t = `ratio`: 2 [(1 + t^2)(1 - Phi(t)) - t pdf(t)]."""
    tail = 0.5 * math.erfc(ratio / math.sqrt(2))
    density = math.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    return 2 * ((1 + ratio**2) * tail - ratio * density)


def softmax_spread(rank: int, row_energy: float) -> float:
    """Standard deviation s of r normal scores whose softmax has the given sum of squares.

    Solved by bisection on the r plotting positions s * Phi^-1((j - 1/2) / r): the log-normal formula e^(s^2) / r
    rests on draws so rare that r of them do not hold one.
    """
    z = np.array([NormalDist().inv_cdf((j + 0.5) / rank) for j in range(rank)])
    low, high = _MIN_SOFTMAX_SPREAD, 100.0
    target = min(row_energy, _MAX_SOFTMAX_ENERGY)
    for _ in range(60):
        middle = (low + high) / 2
        p = np.exp(middle * (z - z[-1]))
        low, high = (low, middle) if np.sum((p / p.sum()) ** 2) > target else (middle, high)
    return low


@dataclasses.dataclass(frozen=True)
class InitialScale:
    """Where the attention starts: Z has standard deviation `spread`, its factors Q and K each sqrt(spread)."""

    spread: float
    threshold: float
    """lambda of the Softshrink; 0 where there is none."""
    live: float
    """Expected share of live entries."""

    @property
    def factor_std(self) -> float:
        """Standard deviation of the entries of Q and of K: the balanced split of `spread`."""
        return math.sqrt(self.spread)


def initial_scale(
    dimension: int,
    rank: int,
    *,
    live: float = 0.8,
    energy: float = 0.1,
    attention: str = "softshrink",
    diagonal: bool = True,
) -> InitialScale:
    """Spread and threshold at start, for any d, r and k.

    Z is normal with standard deviation s (exactly, since rows of Q start at one length), so

        lambda = s t,  t = Phi^-1(1 - live / 2),  and  d r s^2 softshrink_energy(t) = energy * min(d, r)

    the right side being the share `energy` of the diagonal's energy at p = 1. Where rows rest on the attention
    alone (no diagonal, or d > r) at least eight entries a row are expected to live, and without a diagonal the
    attention's rows have unit energy. For softmax the spread gives the same energy, within (1/r, 1/2); without a
    diagonal it is `energy` there, as rows of unit energy would be one-hot.

    Args:
      dimension: d.
      rank: r.
      live: share of live entries, in (0, 1).
      energy: of phi(Z) relative to A, above 0.
      attention: softshrink or softmax.
      diagonal: whether there is a principal diagonal.
    """
    row_energy = energy * min(dimension, rank) / dimension if diagonal else 1.0
    if attention == "softmax":
        return InitialScale(softmax_spread(rank, row_energy if diagonal else energy), 0.0, 1.0)
    if attention != "softshrink":
        raise unknown_name("attention with a scale", attention, ("softshrink", "softmax"))
    if not diagonal or dimension > rank:
        live = max(live, min(0.5, _MIN_LIVE_PER_ROW / rank))
    ratio = -NormalDist().inv_cdf(live / 2)
    spread = math.sqrt(row_energy / (rank * softshrink_energy(ratio)))
    return InitialScale(spread, ratio * spread, live)


def equal_row_normal(std: float) -> Callable[..., Float[Array, "rows columns"]]:
    """Initialiser: random directions, rows of length std * sqrt(columns).

    Against a normal K it makes Z exactly normal for every k; with normal Q the tails at small k are heavier.
    """

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Float[Array, "rows columns"]:
        rows = jax.random.normal(key, shape, dtype)
        return rows * (std * math.sqrt(shape[-1]) / jnp.linalg.norm(rows, axis=-1, keepdims=True))

    return init


def inverse_softplus(x: float) -> float:
    """The y with log(1 + e^y) = x, for x > 0."""
    return x + math.log(-math.expm1(-x))
