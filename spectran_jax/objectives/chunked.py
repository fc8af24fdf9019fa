"""Cross-entropy over N items, in chunks of logits that stay small: value and gradients, exact to float32 rounding.

Both routes are functions of the same arguments; shapes alone choose between them (`_rows`):

- Rows of logits that fit: a loop over chunks of *positions* that computes both gradients with the value; nothing
  is computed twice: three matrix products, as many as without chunks. The backward pass only scales them.
- Too many items for that: a loop over chunks of *items* with a running log-sum-exp, and the logits again in the
  backward pass: four products. (Summing the states' gradient in the forward pass, rescaled as the maximum grows, costs
  as many products and, measured, the same time; it needs one array more.)

References:
  Milakov and Gimelshein, Online normalizer calculation for softmax, 2018. Wijmans et al., Cut Your Losses in
  Large-Vocabulary Language Models, 2025.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from spectran_jax.objectives.base import MASKED

# Logits in one chunk. Small chunks stay in cache and reuse their memory; but each chunk of positions also adds to the
# gradient of the whole table, and each chunk of items to that of all states, so a chunk has a least width as well.
_MOST = 2**23
_USUAL = 2**21
_LEAST_POSITIONS = 128
_LEAST_ITEMS = 512

Carry = TypeVar("Carry")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    chunk: int | None,
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    share: Float[jax.Array, "T"],
) -> tuple[Float[jax.Array, ""], Float[jax.Array, "T"]]:
    """`sum_t share_t * (log sum_{j: candidates_j} exp <state_t, item_j> - <state_t, item_pos(t)>)`, and the last term.

    Differentiable in reverse by states, table and share; the last term is a constant to it.

    Args:
      chunk: logits held at once, at most; `_MOST` if None.
      states: float32, over the temperature.
      table: float32 or bfloat16.
      positive_ids: int32 row of the table of each position's target, a candidate.
      candidates: True for the items in the sum.
      share: float32 weight of each position.
    """
    normalizer = _normalizer(chunk, states, table, candidates)
    positive = _positive(states, table, positive_ids)
    return jnp.sum(share * (normalizer - positive)), positive


def _forward(
    chunk: int | None,
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    share: Float[jax.Array, "T"],
) -> tuple[tuple[Float[jax.Array, ""], Float[jax.Array, "T"]], Any]:
    positive = _positive(states, table, positive_ids)
    if rows := _rows(chunk, len(states), len(table)):
        normalizer, gradients = _by_positions(rows, states, table, positive_ids, candidates, share)
        inputs = None
    else:
        normalizer, gradients = _normalizer(chunk, states, table, candidates), None
        inputs = states, table, positive_ids, candidates, share, normalizer
    losses = normalizer - positive
    return (jnp.sum(share * losses), positive), (losses, gradients, inputs)


def _backward(
    chunk: int | None, residuals: Any, cotangents: tuple[Float[jax.Array, ""], Float[jax.Array, "T"]]
) -> tuple[Any, ...]:
    losses, gradients, inputs = residuals
    by_states, by_table = _by_items(chunk, *inputs) if gradients is None else gradients
    scale, _ = cotangents
    return by_states * scale, (by_table * scale).astype(by_table.dtype), None, None, losses * scale


cross_entropy.defvjp(_forward, _backward)


def _rows(chunk: int | None, tokens: int, items: int) -> int:
    """Positions in a chunk of the first route; 0 where it must be the second."""
    rows = (chunk or _MOST) // items
    return min(rows, max(_LEAST_POSITIONS, _USUAL // items)) if rows >= min(tokens, _LEAST_POSITIONS) else 0


def _positive(
    states: Float[jax.Array, "T d"], table: Float[jax.Array, "N d"], positive_ids: Int[jax.Array, "T"]
) -> Float[jax.Array, "T"]:
    return jnp.einsum("td,td->t", states, table[positive_ids].astype(jnp.float32))


def _by_positions(
    rows: int,
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    share: Float[jax.Array, "T"],
) -> tuple[Float[jax.Array, "T"], tuple[Float[jax.Array, "T d"], Float[jax.Array, "N d"]]]:
    """The log-normalizers, and the gradients by states and table: one loop over chunks of `rows` positions."""
    tokens, dimension = states.shape
    chunks = -(-tokens // rows)
    size = -(-tokens // chunks)

    def split(x: jax.Array) -> jax.Array:
        """[T, ...] -> [chunks, size, ...]; every chunk takes from all of T, so from every device that holds a part."""
        x = jnp.pad(x, ((0, chunks * size - tokens), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(size, chunks, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(chunks * size, *x.shape[2:])[:tokens]

    bias = jnp.where(candidates, 0.0, MASKED)
    wide = table.astype(jnp.float32)

    def body(by_table: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        state, portion = part
        logits = jnp.einsum("td,nd->tn", state, wide) + bias
        top = jnp.max(logits, axis=1)
        unnormalized = jnp.exp(logits - top[:, None])
        total = jnp.sum(unnormalized, axis=1)
        # What scales a row of probabilities scales a row of d numbers instead.
        scale = (portion / total)[:, None]
        by_table += jnp.einsum("tn,td->nd", unnormalized, state * scale)
        return by_table, (top + jnp.log(total), jnp.einsum("tn,nd->td", unnormalized, wide) * scale)

    weighted = share[:, None] * states
    start = jnp.zeros((len(table), dimension), jnp.float32).at[positive_ids].add(-weighted)
    by_table, (normalizer, by_states) = jax.lax.scan(body, start, (split(states), split(share)))
    by_states = join(by_states) - share[:, None] * wide[positive_ids]
    return join(normalizer), (by_states, by_table.astype(table.dtype))


def _over_items(
    chunk: int | None, tokens: int, items: int, step: Callable[[Carry, Any, int], Carry], carry: Carry
) -> Carry:
    """`step(carry, first item, number of items)` over chunks of items in turn; the last may be smaller."""
    most = (chunk or _MOST) // max(tokens, 1)
    size = min(items, max(1, min(most, max(_LEAST_ITEMS, _USUAL // max(tokens, 1)))))
    whole, rest = divmod(items, size)
    carry = jax.lax.fori_loop(0, whole, lambda i, c: step(c, i * size, size), carry)
    return step(carry, whole * size, rest) if rest else carry


def _part(
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    candidates: Bool[jax.Array, "N"],
    at: Any,
    size: int,
) -> tuple[Float[jax.Array, "T n"], Float[jax.Array, "n d"]]:
    """Logits and float32 vectors of `size` items from the one `at`."""
    vectors = jax.lax.dynamic_slice_in_dim(table, at, size).astype(jnp.float32)
    bias = jnp.where(jax.lax.dynamic_slice_in_dim(candidates, at, size), 0.0, MASKED)
    return jnp.einsum("td,nd->tn", states, vectors) + bias, vectors


def _normalizer(
    chunk: int | None, states: Float[jax.Array, "T d"], table: Float[jax.Array, "N d"], candidates: Bool[jax.Array, "N"]
) -> Float[jax.Array, "T"]:
    """Log of the sum of exp(logits), with a running maximum."""

    def step(carry: tuple[jax.Array, jax.Array], at: Any, size: int) -> tuple[jax.Array, jax.Array]:
        top, total = carry
        logits, _ = _part(states, table, candidates, at, size)
        higher = jnp.maximum(top, jnp.max(logits, axis=1))
        return higher, total * jnp.exp(top - higher) + jnp.sum(jnp.exp(logits - higher[:, None]), axis=1)

    start = jnp.full(len(states), -jnp.inf), jnp.zeros(len(states))
    top, total = _over_items(chunk, len(states), len(table), step, start)
    return top + jnp.log(total)


def _by_items(
    chunk: int | None,
    states: Float[jax.Array, "T d"],
    table: Float[jax.Array, "N d"],
    positive_ids: Int[jax.Array, "T"],
    candidates: Bool[jax.Array, "N"],
    share: Float[jax.Array, "T"],
    normalizer: Float[jax.Array, "T"],
) -> tuple[Float[jax.Array, "T d"], Float[jax.Array, "N d"]]:
    """The gradients by states and table, from the log-normalizers; each item's is complete with its chunk."""
    weighted = share[:, None] * states

    def step(carry: tuple[jax.Array, jax.Array], at: Any, size: int) -> tuple[jax.Array, jax.Array]:
        by_states, by_table = carry
        logits, vectors = _part(states, table, candidates, at, size)
        target = positive_ids[:, None] == at + jnp.arange(size, dtype=positive_ids.dtype)
        residual = jnp.exp(logits - normalizer[:, None]) - target
        by_part = jnp.einsum("tn,td->nd", residual, weighted).astype(table.dtype)
        by_table = jax.lax.dynamic_update_slice_in_dim(by_table, by_part, at, axis=0)
        return by_states + jnp.einsum("tn,nd->td", residual, vectors), by_table

    start = jnp.zeros(states.shape), jnp.zeros(table.shape, table.dtype)
    by_states, by_table = _over_items(chunk, len(states), len(table), step, start)
    return by_states * share[:, None], by_table
