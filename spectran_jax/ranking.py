"""Ranks and top items over a whole catalogue, in chunks of items: exact, and in memory that does not follow N."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError

Carry = TypeVar("Carry")

CHUNK_BYTES = 4 * 2**20
"""Scores held at once. Small enough to stay in a cache near the cores, large enough to hide the loop."""


def rank_targets(
    states: Float[jax.Array, "B d"],
    table: Float[jax.Array, "N d"],
    targets: Int[jax.Array, "B"],
    seen: Int[jax.Array, "B S"] | None = None,
    *,
    chunk: int | None = None,
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
      chunk: items scored at once; by default as many as `CHUNK_BYTES` holds.

    Returns:
      int32 ranks in [0, N); -1 for a state with a score that is NaN.

    Raises:
      InputError: for arrays whose shapes do not fit together.
    """
    _check(states, table, seen, chunk)
    if targets.shape != states.shape[:1]:
        raise InputError(f"targets must have the shape {states.shape[:1]} of the states, got {targets.shape}.")
    states = states.astype(jnp.float32)
    target_vectors = table[targets].astype(jnp.float32)
    own = jnp.einsum("bd,bd->b", states, target_vectors, precision="highest")
    bar = (own - tie_tolerance(states, target_vectors))[:, None]
    excluded = targets[:, None] if seen is None else jnp.concatenate([targets[:, None], seen], axis=1)

    def count(
        carry: tuple[Int[jax.Array, "B"], Bool[jax.Array, "B"]], vectors: Float[jax.Array, "C d"], start: jax.Array
    ) -> tuple[Int[jax.Array, "B"], Bool[jax.Array, "B"]]:
        ranks, broken = carry
        scores = _scores(states, vectors)
        broken |= jnp.isnan(scores).any(axis=1)
        scores = _leave_out(scores, excluded, start)
        return ranks + jnp.sum(scores >= bar, axis=1, dtype=jnp.int32), broken

    zeros = jnp.zeros(len(states), jnp.int32)
    ranks, broken = _over_chunks(count, (zeros, jnp.isnan(own)), table, chunk or chunk_items(len(states)))
    return jnp.where(broken, -1, ranks)


def top_k(
    states: Float[jax.Array, "B d"],
    table: Float[jax.Array, "N d"],
    k: int,
    seen: Int[jax.Array, "B S"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Float[jax.Array, "B k"], Int[jax.Array, "B k"]]:
    """The k items of highest score, best first; of equal scores the lower id first.

    Args:
      states: user states, ready to score.
      table: vectors of the whole catalogue, ready to score.
      k: number of items.
      seen: int32 ids to leave out, padded with -1, repetitions allowed.
      chunk: items scored at once; by default as many as `CHUNK_BYTES` holds.

    Returns:
      float32 scores and int32 ids. Where fewer than k items are left, the rest has id -1 and score -inf. A state with
      a score that is NaN has id -1 and score NaN throughout.

    Raises:
      InputError: for arrays whose shapes do not fit together, or k outside [1, N].
    """
    _check(states, table, seen, chunk)
    if not 1 <= k <= len(table):
        raise InputError(f"k must lie between 1 and the number of items, {len(table)}, got {k}.")
    states = states.astype(jnp.float32)

    def merge(
        carry: tuple[Float[jax.Array, "B k"], Int[jax.Array, "B k"], Bool[jax.Array, "B"]],
        vectors: Float[jax.Array, "C d"],
        start: jax.Array,
    ) -> tuple[Float[jax.Array, "B k"], Int[jax.Array, "B k"], Bool[jax.Array, "B"]]:
        best, ids, broken = carry
        scores = _scores(states, vectors)
        broken |= jnp.isnan(scores).any(axis=1)
        if seen is not None:
            scores = _leave_out(scores, seen, start)
        values, columns = jax.lax.top_k(scores, min(k, len(vectors)))
        # What was found before stands first: its ids are lower, and top_k keeps the order of equal values.
        values = jnp.concatenate([best, values], axis=1)
        found = jnp.concatenate([ids, columns.astype(jnp.int32) + start], axis=1)
        best, order = jax.lax.top_k(values, k)
        return best, jnp.take_along_axis(found, order, axis=1), broken

    shape = (len(states), k)
    empty = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32), jnp.zeros(len(states), bool)
    best, ids, broken = _over_chunks(merge, empty, table, chunk or chunk_items(len(states)))
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


def chunk_items(batch: int) -> int:
    """Items scored at once for `batch` states: a multiple of 128 whose scores fill `CHUNK_BYTES`."""
    return max(CHUNK_BYTES // (4 * max(batch, 1)) // 128, 1) * 128


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


def _scores(states: Float[jax.Array, "B d"], vectors: Float[jax.Array, "C d"]) -> Float[jax.Array, "B C"]:
    # Accelerators round the factors of a float32 product by default, which would make ties where there are none.
    return jnp.einsum("bd,cd->bc", states, vectors.astype(jnp.float32), precision="highest")


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
