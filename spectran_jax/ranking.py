"""Ranks and top items over a whole catalogue, in chunks of items: exact, and in memory that does not follow N."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError

Carry = TypeVar("Carry")

CHUNK_BYTES = 2 * 2**20
"""Scores held at once by `rank_targets`: small enough to stay in a cache near the cores, which counts them at the
speed of the product; large enough to hide the loop."""

TOP_CHUNK_BYTES = 4 * CHUNK_BYTES
"""The same for `top_k`, whose merge costs as much for a small chunk as for a large one."""

_NAN = 2**16
"""One NaN in a count of items, so that one pass counts both; chunks hold fewer items than this."""

_BLOCK = 16
"""Neighbouring items of which `top_k` first looks at the maximum alone."""

_FEW = (8, 32)
"""Blocks of a chunk that `top_k` can merge without looking at the others."""


class Shard(NamedTuple):
    """What a device's run of rows is a part of: a table of `items` rows, cut evenly over mesh axes in their order.

    The last rows may be there to make the cut even: those from `items` on are no items. Without axes the run is all.
    """

    axes: tuple[str, ...]
    items: int

    def first(self, table: Float[jax.Array, "R d"]) -> jax.Array:
        """Number of the first row, int32."""
        return jax.lax.axis_index(self.axes) * len(table) if self.axes else jnp.int32(0)

    def gather(
        self,
        table: Float[jax.Array, "R d"],
        ids: Int[jax.Array, "*b"],
        read: Callable[[Int[jax.Array, "*b"]], Float[jax.Array, "*b d"]] | None = None,
    ) -> Float[jax.Array, "*b d"]:
        """Rows of the whole table in float32, or what `read` gives of rows of this run; the same on all devices."""
        place = ids - self.first(table)
        inside = (place >= 0) & (place < len(table))
        here = jnp.where(inside, place, 0)
        found = table[here].astype(jnp.float32) if read is None else read(here)
        return self.sum(jnp.where(inside[..., None], found, 0))

    def sum(self, x: jax.Array) -> jax.Array:
        """Over the devices."""
        return jax.lax.psum(x, self.axes) if self.axes else x


def rank_targets(
    states: Float[jax.Array, "B d"],
    table: Float[jax.Array, "N d"],
    targets: Int[jax.Array, "B"],
    seen: Int[jax.Array, "B S"] | None = None,
    *,
    chunk: int | None = None,
    shard: Shard | None = None,
) -> Int[jax.Array, "B"]:
    """0-based rank of each target among all N items: the number of other items that score at least as much.

    Ties count against the target, so that a model that scores all items alike ranks every target last. Scores within
    `tie_tolerance` of the target's count as ties: the same item vector scores differently in its last bits where a
    matrix product sums it in another order.

    Args:
      states: user states, ready to score (of unit length where the score is the cosine).
      table: vectors of the whole catalogue, ready to score.
      targets: int32 ids of the targets.
      seen: int32 ids that do not compete, padded with -1, repetitions allowed. The target's own id has no effect: a
        target is never filtered.
      chunk: items scored at once, at most 65,535; by default as many as `CHUNK_BYTES` holds.
      shard: under `shard_map`, what `table` is a part of.

    Returns:
      int32 ranks in [0, N); -1 for a state with a score that is NaN, or whose target's score (or what rounding may
      change in it) is not finite.

    Raises:
      InputError: for arrays whose shapes do not fit together.
    """
    _check(states, table, seen, chunk)
    if targets.shape != states.shape[:1]:
        raise InputError(f"targets must have the shape {states.shape[:1]} of the states, got {targets.shape}.")
    states = states.astype(jnp.float32)
    shard = shard or Shard((), len(table))
    first = shard.first(table)
    target_vectors = shard.gather(table, targets)
    own = jnp.einsum("bd,bd->b", states, target_vectors, precision="highest")
    bar = own - tie_tolerance(states, target_vectors)
    rivals = None if seen is None else _distinct_rivals(seen, targets)

    # Scores are [items, users] here: sums over items then run along the vector units, for many users at once.
    def count(
        carry: tuple[Int[jax.Array, "B"], Bool[jax.Array, "B"]], vectors: Float[jax.Array, "C d"], start: jax.Array
    ) -> tuple[Int[jax.Array, "B"], Bool[jax.Array, "B"]]:
        ranks, broken = carry
        scores = jnp.einsum("cd,bd->cb", vectors.astype(jnp.float32), states, precision="highest")
        # The target's column is left out by its id: its score here may differ from `own` in the last bits.
        ids = (first + start + jnp.arange(len(vectors)))[:, None]
        ahead = (scores >= bar) & (ids != targets) & (ids < shard.items)
        counts = jnp.sum(ahead.astype(jnp.uint32) + jnp.where(jnp.isnan(scores), _NAN, 0).astype(jnp.uint32), axis=0)
        ranks += (counts % _NAN).astype(jnp.int32)
        if rivals is not None:
            place = rivals - (first + start)
            inside = (place >= 0) & (place < len(vectors))
            values = jnp.take_along_axis(scores, jnp.where(inside, place, 0), axis=0)
            ranks -= jnp.sum(inside & (values >= bar), axis=0, dtype=jnp.int32)
        return ranks, broken | (counts >= _NAN)

    zeros = jnp.zeros(len(states), jnp.int32)
    chunk = min(chunk or chunk_items(len(states), CHUNK_BYTES), _NAN - 1)
    ranks, broken = _over_chunks(count, (zeros, ~jnp.isfinite(bar)), table, chunk)
    return jnp.where(shard.sum(broken.astype(jnp.int32)) > 0, -1, shard.sum(ranks))


def top_k(
    states: Float[jax.Array, "B d"],
    table: Float[jax.Array, "N d"],
    k: int,
    seen: Int[jax.Array, "B S"] | None = None,
    *,
    chunk: int | None = None,
    recall: float | None = None,
    shard: Shard | None = None,
) -> tuple[Float[jax.Array, "B k"], Int[jax.Array, "B k"]]:
    """The k items of highest score, best first; of equal scores the lower id first.

    Chunks are merged into the best found so far. Of a chunk only those blocks of neighbouring items are looked at
    whose maximum beats the k-th best: in a long catalogue few or none, so that the product is what it costs.

    With `recall`, `jax.lax.approx_max_k` reduces each chunk to the maxima of L bins before the merge, where the
    hardware can (TPU; elsewhere XLA sorts, exactly and slowly). A bin keeps one item, so an item of the true top k
    is lost if a better one shares its bin, and a lesser one takes its place. For N >> k items in random order the
    expected share that is found is L / k (1 - (1 - 1 / L)^k); its lower bound ((L - 1) / L)^(k - 1), about
    exp(-(k - 1) / L), is what XLA solves for L, chunk by chunk, so that over several chunks more is found than asked.

    Args:
      states: user states, ready to score.
      table: vectors of the whole catalogue, ready to score; rows beyond the items of `shard` are none.
      k: number of items.
      seen: int32 ids to leave out, padded with -1, repetitions allowed.
      chunk: items scored at once; by default as many as `TOP_CHUNK_BYTES` holds.
      recall: expected share of the true top k that suffices, in (0, 1]; None or 1 is exact.
      shard: under `shard_map`, what `table` is a part of; its best are found on each device, then merged.

    Returns:
      float32 scores and int32 ids. Where fewer than k items are left, the rest has id -1 and score -inf. A state with
      a score that is NaN has id -1 and score NaN throughout.

    Raises:
      InputError: for arrays whose shapes do not fit together, k outside [1, N], or `recall` outside (0, 1].

    References:
      Chern et al., TPU-KNN: K nearest neighbor search at peak FLOP/s, NeurIPS 2022.
    """
    _check(states, table, seen, chunk)
    shard = shard or Shard((), len(table))
    if not 1 <= k <= shard.items:
        raise InputError(f"k must lie between 1 and the number of items, {shard.items}, got {k}.")
    if recall is not None and not 0 < recall <= 1:
        raise InputError(f"recall must lie above 0 and be at most 1, got {recall}.")
    states = states.astype(jnp.float32)
    first = shard.first(table)

    def merge(carry: _Top, vectors: Float[jax.Array, "C d"], start: jax.Array) -> _Top:
        # Accelerators round the factors of a float32 product by default, which would make ties where there are none.
        scores = jnp.einsum("bd,cd->bc", states, vectors.astype(jnp.float32), precision="highest")
        broken = carry.broken | jnp.isnan(scores).any(axis=1)
        start = first + start
        if shard.axes or shard.items < len(table):  # rows that are no item
            scores = jnp.where(start + jnp.arange(len(vectors)) < shard.items, scores, -jnp.inf)
        if seen is not None:
            scores = _leave_out(scores, seen, start)
        if recall is not None and recall < 1:
            values, columns = jax.lax.approx_max_k(scores, min(k, len(vectors)), recall_target=recall)
            best, ids = _merge(carry.best, carry.ids, values, columns + start)
        else:
            best, ids = _merge_chunk(carry.best, carry.ids, scores, start)
        return _Top(best, ids, broken)

    shape = (len(states), k)
    empty = _Top(jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32), jnp.zeros(len(states), bool))
    best, ids, broken = _over_chunks(merge, empty, table, chunk or chunk_items(len(states), TOP_CHUNK_BYTES))
    if shard.axes:
        # Side by side in the order of the shards, so that of equal scores the lower id still stands first.
        values, found = (jax.lax.all_gather(x, shard.axes, axis=1, tiled=True) for x in (best, ids))
        best, order = jax.lax.top_k(values, k)
        ids, broken = jnp.take_along_axis(found, order, axis=1), shard.sum(broken.astype(jnp.int32)) > 0
    best = jnp.where(broken[:, None], jnp.nan, best)
    return best, jnp.where(broken[:, None] | (best == -jnp.inf), -1, ids)


def tie_tolerance(states: Float[jax.Array, "B d"], vectors: Float[jax.Array, "B d"]) -> Float[jax.Array, "B"]:
    """What rounding may change in <state, vector>: 2 (2 + sqrt(d)) units of float32 rounding, times both lengths.

    The errors of d additions in sequence grow as sqrt(d) where they are independent; unlike the worst case, d, this
    stays far below the distance between neighbours at the top of a ranking.
    """
    lengths = jnp.linalg.norm(states, axis=-1) * jnp.linalg.norm(vectors, axis=-1)
    unit = jnp.finfo(jnp.float32).eps / 2
    return 2 * (2 + states.shape[-1] ** 0.5) * unit * lengths


def chunk_items(batch: int, budget: int) -> int:
    """Items scored at once for `batch` states: a multiple of 128 whose float32 scores fill `budget` bytes."""
    return max(budget // (4 * max(batch, 1)) // 128, 1) * 128


def _over_chunks(
    body: Callable[[Carry, Float[jax.Array, "C d"], jax.Array], Carry],
    carry: Carry,
    table: Float[jax.Array, "N d"],
    chunk: int,
) -> Carry:
    """Folds `body(carry, vectors, first id)` over the items in order: whole chunks in a loop, then the rest.

    The rest is not padded: padding would copy the table.
    """
    whole, rest = divmod(len(table), chunk)

    def step(index: jax.Array, carry: Carry) -> Carry:
        start = jnp.asarray(index * chunk, jnp.int32)
        return body(carry, jax.lax.dynamic_slice_in_dim(table, start, chunk), start)

    if whole:
        carry = jax.lax.fori_loop(0, whole, step, carry)
    return body(carry, table[whole * chunk :], jnp.int32(whole * chunk)) if rest else carry


def _distinct_rivals(seen: Int[jax.Array, "B S"], targets: Int[jax.Array, "B"]) -> Int[jax.Array, "S B"]:
    """The ids that lose their place in the count, each once: without the target, -1 instead of what is left out."""
    ordered = jnp.sort(seen.T, axis=0)
    again = jnp.concatenate([jnp.zeros_like(ordered[:1], bool), ordered[1:] == ordered[:-1]])
    return jnp.where(again | (ordered == targets), -1, ordered)


class _Top(NamedTuple):
    best: Float[jax.Array, "B k"]
    ids: Int[jax.Array, "B k"]
    broken: Bool[jax.Array, "B"]


_Best = tuple[Float[jax.Array, "B k"], Int[jax.Array, "B k"]]


def _merge(
    best: Float[jax.Array, "B k"],
    ids: Int[jax.Array, "B k"],
    values: Float[jax.Array, "B m"],
    found: Int[jax.Array, "B m"],
) -> _Best:
    """The k best of both. Equal values keep their order; what was found before stands first: its ids are lower."""
    best, order = jax.lax.top_k(jnp.concatenate([best, values], axis=1), best.shape[1])
    return best, jnp.take_along_axis(jnp.concatenate([ids, found.astype(jnp.int32)], axis=1), order, axis=1)


def _merge_chunk(
    best: Float[jax.Array, "B k"], ids: Int[jax.Array, "B k"], scores: Float[jax.Array, "B C"], start: jax.Array
) -> _Best:
    """Merges the scores of items `start`, `start` + 1, ...: as little of them as can matter.

    An item enters if it beats the k-th best; ties lose, since its id is higher. So does only an item of a block
    whose maximum beats it. Where no row has more than q such blocks, the q blocks of highest maximum hold them all.
    """
    users, items = scores.shape
    k = best.shape[1]

    def everything(best: jax.Array, ids: jax.Array) -> _Best:
        values, columns = jax.lax.top_k(scores, min(k, items))
        return _merge(best, ids, values, columns + start)

    sizes = [q for q in _FEW if 2 * q * _BLOCK <= items]
    if not sizes or items % _BLOCK:
        return everything(best, ids)
    blocks = scores.reshape(users, -1, _BLOCK)
    maxima = blocks.max(axis=2)

    def some(q: int) -> Callable[[jax.Array, jax.Array], _Best]:
        def merge(best: jax.Array, ids: jax.Array) -> _Best:
            # In the order of their ids, so that of equal values the lower id stands first.
            which = jnp.sort(jax.lax.top_k(maxima, q)[1], axis=1)
            values = jnp.take_along_axis(blocks, which[:, :, None], axis=1)
            found = start + which[:, :, None] * _BLOCK + jnp.arange(_BLOCK)
            return _merge(best, ids, values.reshape(users, -1), found.reshape(users, -1))

        return merge

    most = jnp.sum(maxima > best[:, -1:], axis=1).max()
    branch = sum((most > q).astype(jnp.int32) for q in [0, *sizes])
    return jax.lax.switch(branch, [lambda best, ids: (best, ids), *map(some, sizes), everything], best, ids)


def _leave_out(
    scores: Float[jax.Array, "B C"], ids: Int[jax.Array, "B S"], start: jax.Array
) -> Float[jax.Array, "B C"]:
    """Scores of a chunk that begins at item `start`, -inf at the listed items; ids outside the chunk do nothing."""
    columns = ids - start
    outside = scores.shape[1]
    columns = jnp.where((columns >= 0) & (columns < outside), columns, outside)
    # Row by row, so that a batch spread over devices stays where it is.
    return jax.vmap(lambda row, at: row.at[at].set(-jnp.inf, mode="drop"))(scores, columns)


def _check(states: jax.Array, table: jax.Array, seen: jax.Array | None, chunk: int | None) -> None:
    if states.ndim != 2 or table.ndim != 2 or states.shape[1] != table.shape[1] or not len(table):
        raise InputError(
            f"states [B, d] and table [N, d] must share d, with N at least 1; got {states.shape} and {table.shape}."
        )
    if seen is not None and (seen.ndim != 2 or len(seen) != len(states)):
        raise InputError(f"seen must have one row for each of the {len(states)} states, got {seen.shape}.")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1 item, got {chunk}.")
