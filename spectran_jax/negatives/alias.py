"""Walker's alias method in integers: a draw from any distribution over N items for two look-ups."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int64, UInt32

UNIT = 2**32  # what a cell holds


class AliasTable(NamedTuple):
    """N cells of `UNIT` each: cell i holds `threshold[i]` of item i and the rest of item `alias[i]`."""

    threshold: UInt32[np.ndarray, "N"]
    alias: Int[np.ndarray, "N"]
    """int32."""
    weight: Int64[np.ndarray, "N"]
    """What the cells hold of each item, in all: item i is drawn with probability `weight[i] / (N * UNIT)`, exactly."""


def alias_table(probabilities: Float[np.ndarray, "N"]) -> AliasTable:
    """The alias table of `probabilities`, float64, that sum to one; what is zero stays so, and nothing else becomes it.

    Items that fill less than a cell (light) are completed from those that fill more (heavy), both in order: a heavy
    item serves until what is left of it is less than a cell, and is then completed from the next heavy one. So who
    completes whom follows from two cumulative sums, without a loop; all sums are exact in int64.

    References:
      Walker, An Efficient Method for Generating Discrete Random Variables with General Distributions, 1977.
      Hübschle-Schneider and Sanders, Parallel Weighted Random Sampling, 2022, section 4.
    """
    count = len(probabilities)
    weight = np.rint(probabilities * (count * float(UNIT))).astype(np.int64)
    np.maximum(weight, 1, out=weight, where=probabilities > 0)
    weight[np.argmax(weight)] += count * UNIT - weight.sum()  # what rounding left over; the largest is at least a cell
    light, heavy = np.flatnonzero(weight < UNIT), np.flatnonzero(weight >= UNIT)
    threshold = np.zeros(count, np.uint32)
    alias = np.arange(count, dtype=np.int32)
    threshold[light] = weight[light]
    lack = UNIT - weight[light]
    lacked = np.cumsum(lack)
    spare = np.cumsum(weight[heavy] - UNIT)  # ends where `lacked` ends
    # A light item is served by the first heavy one that what was lacking before it has not used up.
    alias[light] = heavy[np.searchsorted(spare, lacked - lack, side="left")]
    # A heavy item ends with the light one that takes it below a cell; those that nothing takes there stay whole.
    last = np.searchsorted(lacked, spare, side="right")
    ended = np.flatnonzero(last < len(light))
    threshold[heavy[ended]] = UNIT + spare[ended] - lacked[last[ended]]
    alias[heavy[ended]] = heavy[ended + 1]
    return AliasTable(threshold, alias, weight)


def draw(
    key: jax.Array,
    threshold: UInt32[jax.Array, "R"],
    alias: Int[jax.Array, "R"],
    items: Int[jax.Array, ""],
    count: int,
) -> Int[jax.Array, "count"]:
    """`count` independent int32 draws; nothing but integers, so every backend draws the same from the same key.

    Args:
      key: of the draws.
      threshold: of an `AliasTable`, as is `alias`; rows from N on are not read.
      alias: int32.
      items: int32 N.
      count: of draws.
    """
    cell_key, level_key = jax.random.split(key)
    cells = jax.random.randint(cell_key, (count,), 0, items, jnp.int32)
    levels = jax.random.bits(level_key, (count,), jnp.uint32)
    return jnp.where(levels < threshold[cells], cells, alias[cells]).astype(jnp.int32)
