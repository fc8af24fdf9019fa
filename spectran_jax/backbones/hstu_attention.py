"""HSTU's pointwise attention with relative position and time bias (Zhai et al., ICML 2024, equation 2).

    out_i = 1/n sum_{j <= i, same history} SiLU(q_i . k_j + b_position[i - j] + b_time[bucket(t_i - t_j)]) v_j

Nothing is normalised over the keys; as in the authors' code n is a constant, the positions of a row, so packed and
padded rows agree, and there is no 1/sqrt(width). Both biases are shared by the heads. The authors' code reads time one
step ahead, `t_{i+1} - t_j`, as if the moment of the prediction were known; here it is the newest item's.

A sum over keys needs no running maximum, so it is cut into pairs of blocks without ceremony: one pair is plain
attention, many never hold `[B, heads, L, L]` in either direction, and leave out what lies above the diagonal.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from spectran_jax.layout import SequenceLayout

_BUCKET_WIDTH = 0.301
TIME_BUCKETS = 1 + int(math.log(2**31 - 1) / _BUCKET_WIDTH)
"""Logarithmic buckets of an int32 number of seconds."""
BLOCK = 256
"""Positions of a block where a row is cut."""


class Bias(NamedTuple):
    """The learned biases, float32."""

    position: Float[jax.Array, "L"]
    """By how many positions the key is older than the query."""
    time: Float[jax.Array, "T"] | None
    """By `time_bucket` of how much older the key is, `TIME_BUCKETS` of them; None leaves time out."""


def time_bucket(seconds: Int[jax.Array, "..."]) -> Int[jax.Array, "..."]:
    """int32 bucket of a difference in seconds, `floor(ln(max(1, s)) / 0.301)` as in the authors' code."""
    logarithm = jnp.log(jnp.maximum(seconds, 1).astype(jnp.float32))
    return jnp.minimum((logarithm / _BUCKET_WIDTH).astype(jnp.int32), TIME_BUCKETS - 1)


def pointwise_attention(
    q: Float[jax.Array, "B L H w"],
    k: Float[jax.Array, "B L H w"],
    v: Float[jax.Array, "B L H w"],
    bias: Bias,
    layout: SequenceLayout,
    *,
    block: int | None = None,
) -> Float[jax.Array, "B L H w"]:
    """Causal attention within histories, of the formula above; float32 sums, in the dtype of v; 0 on padding.

    Args:
      q: queries.
      k: keys.
      v: values.
      bias: what depends on the distance alone.
      layout: `mask`, `segment` and `timestamp` are read; `bias.time` needs the last.
      block: positions of a block; None takes the whole row up to twice `BLOCK` positions, and `BLOCK` beyond.
    """
    length = q.shape[1]
    if block is None:
        block = BLOCK if length > 2 * BLOCK else length
    timed = bias.time is not None and layout.timestamp is not None
    rows = _Rows(
        segment=jnp.where(jnp.asarray(layout.mask), jnp.asarray(layout.segment), 0),
        seconds=jnp.asarray(layout.timestamp) if timed else None,
    )
    bias = jax.tree.map(jnp.asarray, Bias(bias.position, bias.time if timed else None))
    if block >= length:
        return _pair(length, 0, q, k, v, bias, rows, rows, length).astype(v.dtype)
    extra = -length % block
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    rows = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, extra))), rows)
    table = jnp.pad(bias.position, (0, extra))
    out = _blocked(block, length, q, k, v, bias._replace(position=table), rows)
    return out[:, :length].astype(v.dtype)


class _Rows(NamedTuple):
    segment: Int[jax.Array, "B l"]
    """0 on padding."""
    seconds: Int[jax.Array, "B l"] | None


def _pair(
    scale: int,
    offset: Int[jax.Array, ""] | int,
    q: Float[jax.Array, "B a H w"],
    k: Float[jax.Array, "B a H w"],
    v: Float[jax.Array, "B a H w"],
    bias: Bias,
    queries: _Rows,
    keys: _Rows,
    size: int,
) -> Float[jax.Array, "B a H w"]:
    """What one block of keys adds to one block of queries that begins `offset` positions later, float32."""
    order = jnp.arange(size)
    visible = (queries.segment[:, :, None] == keys.segment[:, None, :]) & (keys.segment[:, None, :] > 0)
    visible &= order[:, None] + offset >= order
    z = jnp.einsum("bqhw,bkhw->bhqk", q, k, preferred_element_type=jnp.float32)
    z += _by_distance(bias.position, offset, size)
    if bias.time is not None:
        assert queries.seconds is not None
        assert keys.seconds is not None
        z += bias.time[time_bucket(queries.seconds[:, :, None] - keys.seconds[:, None, :])][:, None]
    weights = jnp.where(visible[:, None], jax.nn.silu(z) / scale, 0.0)
    return jnp.einsum("bhqk,bkhw->bqhw", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _by_distance(
    table: Float[jax.Array, "n"], offset: Int[jax.Array, ""] | int, size: int
) -> Float[jax.Array, "size size"]:
    """`table[offset + row - column]`, and something where that is negative, without a gather to scatter back."""
    padded = jnp.pad(table, (size, size))
    near = lax.dynamic_slice_in_dim(padded, offset, 2 * size)  # distances offset - size, ..., offset + size - 1
    # A flat repetition of 2 size numbers, read in rows of 2 size - 1, moves by one from row to row.
    cycle = jnp.roll(near[::-1], 1 - size)  # distances offset, offset - 1, ...
    skewed = jnp.broadcast_to(cycle, (size, 2 * size)).reshape(-1)[: size * (2 * size - 1)]
    return skewed.reshape(size, 2 * size - 1)[:, :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(
    block: int,
    scale: int,
    q: Float[jax.Array, "B L H w"],
    k: Float[jax.Array, "B L H w"],
    v: Float[jax.Array, "B L H w"],
    bias: Bias,
    rows: _Rows,
) -> Float[jax.Array, "B L H w"]:
    """Attention over rows of whole blocks, float32: a loop over the pairs of blocks on and below the diagonal."""

    def add(out: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        here, there, pair = _at(block, scale, rows, *at)
        part = pair(here(q), there(k), there(v), bias)
        return lax.dynamic_update_slice_in_dim(out, here(out) + part, at[0] * block, 1), None

    return lax.scan(add, jnp.zeros(q.shape, jnp.float32), _pairs(q.shape[1] // block))[0]


def _at(block: int, scale: int, rows: _Rows, i: jax.Array, j: jax.Array) -> tuple[Any, Any, Any]:
    """How to cut the i-th block of queries and the j-th of keys, and the function of the two."""
    here, there = (lambda x, n=n: lax.dynamic_slice_in_dim(x, n * block, block, 1) for n in (i, j))
    queries, keys = jax.tree.map(here, rows), jax.tree.map(there, rows)

    def pair(q: jax.Array, k: jax.Array, v: jax.Array, bias: Bias) -> jax.Array:
        return _pair(scale, (i - j) * block, q, k, v, bias, queries, keys, block)

    return here, there, pair


def _pairs(blocks: int) -> tuple[jax.Array, jax.Array]:
    i, j = np.tril_indices(blocks)
    return jnp.asarray(i, jnp.int32), jnp.asarray(j, jnp.int32)


def _blocked_forward(block: int, scale: int, *arguments: Any) -> tuple[jax.Array, Any]:
    return _blocked(block, scale, *arguments), arguments


def _blocked_backward(block: int, scale: int, arguments: Any, gradient: jax.Array) -> tuple[Any, ...]:
    """Each pair is computed again and differentiated by itself."""
    q, k, v, bias, rows = arguments

    def add(sums: Any, at: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        here, there, pair = _at(block, scale, rows, *at)
        _, pull = jax.vjp(pair, here(q), there(k), there(v), bias)
        *parts, d_bias = pull(here(gradient))
        wide = [
            lax.dynamic_update_slice_in_dim(x, cut(x) + part.astype(jnp.float32), n * block, 1)
            for x, cut, part, n in zip(sums[0], (here, there, there), parts, (at[0], at[1], at[1]), strict=True)
        ]
        return (wide, jax.tree.map(jnp.add, sums[1], d_bias)), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)], jax.tree.map(jnp.zeros_like, bias)
    (sums, d_bias), _ = lax.scan(add, zeros, _pairs(q.shape[1] // block))
    return *(x.astype(q.dtype) for x in sums), d_bias, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
