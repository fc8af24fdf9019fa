"""Where negatives come from: uniform, by popularity, or the batch's own targets; a registry of samplers.

A sampler says how probable each item is (`log_q`), so that a loss can undo what its draws favour. What it reads is
frozen: `arrays` builds it once on the host, and every call under jit gets it as an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Real

from spectran_jax.config import ObjectiveConfig
from spectran_jax.errors import InputError, unknown_name
from spectran_jax.negatives import alias

Arrays = dict[str, Any]
LookUp = Callable[[Float[jax.Array, "R"], Int[jax.Array, "*b"]], Float[jax.Array, "*b"]]
"""Reads a number an item from an array, at these ids; some number at an id that is no item's."""


def numbers_at(array: Float[jax.Array, "R"], ids: Int[jax.Array, "*b"]) -> Float[jax.Array, "*b"]:
    """The plain `LookUp`. Where the array is cut over devices, the compiler makes a sum over them of it."""
    return jnp.asarray(array).at[ids].get(mode="clip", wrap_negative_indices=False)


class Sampler(Protocol):
    """A distribution over items to draw negatives from."""

    item_arrays: ClassVar[tuple[str, ...]]
    """Those of `arrays` with one row an item. They are on the devices as item tables are: cut by rows over a mesh, and
    with rows behind the last item, so that N is not their length."""

    def arrays(self, counts: Int[np.ndarray, "N"]) -> dict[str, np.ndarray]:
        """What `draw` and `log_q` read: frozen, handed back as an argument of every call.

        Raises:
          InputError: for counts that are negative, not finite or all zero.
        """

    def draw(
        self, key: jax.Array, arrays: Arrays, *, targets: Int[jax.Array, "T"], weight: Float[jax.Array, "T"]
    ) -> Int[jax.Array, "n"]:
        """Independent global int32 ids, with replacement; of items that occur in training only. Under jit; n is static.

        Args:
          key: the draws depend on it and, `in_batch`, on the targets; on nothing else.
          arrays: what `arrays` returned.
          targets: int32 global id of each position's target.
          weight: above 0 on supervised positions, 0 on padding.
        """

    def log_q(self, arrays: Arrays, ids: Int[jax.Array, "*b"], look_up: LookUp = numbers_at) -> Float[jax.Array, "*b"]:
        """Float32 log-probability of each id under the sampler.

        It is -inf for an item that never occurs in training and for an id outside the catalogue, as it must be on
        padding.

        Args:
          arrays: what `arrays` returned.
          ids: int32.
          look_up: reads an array of `item_arrays` at the ids, for who knows a nearer way there.
        """


@dataclasses.dataclass(frozen=True)
class _Tabled:
    """A sampler whose log-probabilities are one float32 an item, -inf for items that never occur in training."""

    item_arrays: ClassVar[tuple[str, ...]] = ("log_q",)

    count: int

    def log_q(self, arrays: Arrays, ids: Int[jax.Array, "*b"], look_up: LookUp = numbers_at) -> Float[jax.Array, "*b"]:
        """See `Sampler.log_q`."""
        ids = jnp.asarray(ids)
        return jnp.where((ids < 0) | (ids >= arrays["items"]), -jnp.inf, look_up(arrays["log_q"], ids))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every item that occurs in training alike. What it reads follows the number of items that do not, and not N."""

    item_arrays: ClassVar[tuple[str, ...]] = ()

    count: int

    def arrays(self, counts: Int[np.ndarray, "N"]) -> dict[str, np.ndarray]:
        """`before`, int32: items of the training set before each that is not in it, ascending; `items` [] int32: N.

        See `Sampler.arrays`.
        """
        counts = checked_counts(counts)
        absent = np.flatnonzero(counts == 0)
        before = (absent - np.arange(len(absent))).astype(np.int32)
        return {"before": before, "items": np.asarray(len(counts), np.int32)}

    def draw(
        self, key: jax.Array, arrays: Arrays, *, targets: Int[jax.Array, "T"], weight: Float[jax.Array, "T"]
    ) -> Int[jax.Array, "n"]:
        """See `Sampler.draw`; targets and weight are not used."""
        before = jnp.asarray(arrays["before"])
        nth = jax.random.randint(key, (self.count,), 0, arrays["items"] - len(before), jnp.int32)
        # The n-th item of the training set has as many absent ones before it as have at most n others before them.
        return nth + jnp.searchsorted(before, nth, side="right").astype(jnp.int32)

    def log_q(self, arrays: Arrays, ids: Int[jax.Array, "*b"], look_up: LookUp = numbers_at) -> Float[jax.Array, "*b"]:
        """See `Sampler.log_q`."""
        before, items, ids = jnp.asarray(arrays["before"]), arrays["items"], jnp.asarray(ids)
        value = -jnp.log(jnp.asarray(items - len(before), jnp.float32))
        return jnp.where(_is_absent(before, ids) | (ids < 0) | (ids >= items), -jnp.inf, value)


def _is_absent(before: Int[jax.Array, "a"], ids: Int[jax.Array, "*b"]) -> Bool[jax.Array, "*b"]:
    """Whether items are the k-th absent one, `before[k] + k`, for any k: a binary search that makes nothing as long as
    `before`."""
    if not len(before):
        return jnp.zeros(ids.shape, bool)
    low, high = jnp.zeros(ids.shape, jnp.int32), jnp.full(ids.shape, len(before) - 1, jnp.int32)
    for _ in range(len(before).bit_length()):
        middle = low + (high - low) // 2
        further = before[middle] + middle < ids
        low, high = jnp.where(further, jnp.minimum(middle + 1, high), low), jnp.where(further, high, middle)
    return before[low] + low == ids


@dataclasses.dataclass(frozen=True)
class Popularity(_Tabled):
    """Items in proportion to count^power, as word2vec draws its negatives (Mikolov et al., 2013, section 2.2)."""

    item_arrays: ClassVar[tuple[str, ...]] = ("threshold", "alias", "log_q")

    power: float

    def arrays(self, counts: Int[np.ndarray, "N"]) -> dict[str, np.ndarray]:
        """`threshold` uint32 and `alias` int32 of the alias method, `log_q`, each [N]; `items` [] int32: N.

        See `Sampler.arrays`.
        """
        counts = checked_counts(counts)
        powers = np.power(counts, self.power, out=np.zeros(len(counts)), where=counts > 0, dtype=np.float64)
        table = alias.alias_table(powers / powers.sum())
        return {"threshold": table.threshold, "alias": table.alias, **_log_q(table.weight)}

    def draw(
        self, key: jax.Array, arrays: Arrays, *, targets: Int[jax.Array, "T"], weight: Float[jax.Array, "T"]
    ) -> Int[jax.Array, "n"]:
        """See `Sampler.draw`; targets and weight are not used."""
        return alias.draw(key, arrays["threshold"], arrays["alias"], arrays["items"], self.count)


@dataclasses.dataclass(frozen=True)
class InBatch(_Tabled):
    """The targets of the batch's supervised positions, uniformly: items by how often they are targets.

    Over many batches an item is drawn as often as its share of the training targets. `log_q` is the logarithm of its
    share of the training occurrences, the best estimate that the counts allow: the first item of each history is
    counted, yet is no target. Draws of one batch stem from its targets alone, so that a sampled softmax nears the
    full one as the batch grows, not as the number of draws does.
    """

    def arrays(self, counts: Int[np.ndarray, "N"]) -> dict[str, np.ndarray]:
        """`log_q` [N]; `items` [] int32: N. See `Sampler.arrays`."""
        return _log_q(checked_counts(counts))

    def draw(
        self, key: jax.Array, arrays: Arrays, *, targets: Int[jax.Array, "T"], weight: Float[jax.Array, "T"]
    ) -> Int[jax.Array, "n"]:
        """See `Sampler.draw`; a batch without supervision gives ids of its padding, which no position counts."""
        supervised = jnp.cumsum(weight > 0, dtype=jnp.int32)
        nth = jax.random.randint(key, (self.count,), 0, jnp.maximum(supervised[-1], 1), jnp.int32)
        return targets[jnp.searchsorted(supervised, nth, side="right")].astype(jnp.int32)


def build(config: ObjectiveConfig, counts: Int[np.ndarray, "N"]) -> Sampler:
    """The sampler that `config`, of a checked configuration, names, of `config.negatives` draws.

    Raises:
      InputError: for an unknown name, counts that `checked_counts` refuses, or more uniform negatives than items in
        training.
    """
    if config.sampling not in SAMPLERS:
        raise unknown_name("sampling", config.sampling, SAMPLERS)
    trained = int(np.count_nonzero(checked_counts(counts)))
    if config.sampling == "uniform" and config.negatives > trained:
        raise InputError(
            f"--negatives must lie between 1 and the number of items in training, {trained}, got {config.negatives}. "
            f"Take --negatives={trained} or fewer, or --loss=softmax, which takes all items."
        )
    return SAMPLERS[config.sampling](config)


SAMPLERS: dict[str, Callable[[ObjectiveConfig], Sampler]] = {
    "uniform": lambda config: Uniform(config.negatives),
    "popularity": lambda config: Popularity(config.negatives, config.popularity_power),
    "in_batch": lambda config: InBatch(config.negatives),
}


def checked_counts(counts: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Training occurrences of each item, after a look at them; no copy.

    Raises:
      InputError: for counts that are no vector, negative or not finite, naming the first such item, or all zero.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1:
        raise InputError(f"Counts must be one number an item, got the shape {counts.shape}.")
    bad = np.flatnonzero(~((counts >= 0) & (counts < np.inf)))
    if len(bad):
        raise InputError(f"Counts must be finite and at least 0, item {bad[0]} has {counts[bad[0]]}.")
    if not counts.any():
        raise InputError(f"None of the {len(counts)} items occurs in training, so there are no negatives to draw.")
    return counts


def _log_q(weight: Real[np.ndarray, "N"]) -> dict[str, np.ndarray]:
    """What `_Tabled` reads: float32 logarithm of each weight's share of them all, -inf for zero; and their number."""
    with np.errstate(divide="ignore"):
        log_q = (np.log(weight.astype(np.float64)) - np.log(weight.sum(dtype=np.float64))).astype(np.float32)
    return {"log_q": log_q, "items": np.asarray(len(weight), np.int32)}
