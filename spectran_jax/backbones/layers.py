"""What the backbones are made of: layer norm, GELU, dropout, masks and attention within a history.

All of it works on rows, `[n, d]` with n = B * L: products contract over one axis, and a compiler need not copy
an operand into another layout first. Statistics, softmax and accumulation are float32 in any compute dtype.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float, Int, UInt32

from spectran_jax.layout import SequenceLayout

INIT = nn.initializers.normal(0.02)
"""Of weights and embeddings, in all backbones."""

_EPSILON = 1e-6
_LEVELS = 1 << 16
_MAX_CUDNN_HEAD = 128


def history_mask(layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
    """True where a query (third axis) and a key (fourth) are of the same history.

    Every position may attend to itself, padding included, so that no softmax is over nothing.
    """
    segment = jnp.asarray(layout.segment)
    same = (segment[:, :, None] == segment[:, None, :]) & jnp.asarray(layout.mask)[:, None, :]
    return (same | jnp.eye(segment.shape[1], dtype=bool))[:, None]


def causal_mask(layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
    """`history_mask` where the key is not later than the query."""
    length = layout.segment.shape[1]
    return history_mask(layout) & jnp.tril(jnp.ones((length, length), bool))


def fused_attention(
    platform: str, capability: float, dtype: Any, length: int, head_dimension: int
) -> Literal["cudnn", "xla"]:
    """Which implementation `jax.nn.dot_product_attention` is asked for; it raises where cuDNN cannot do the job.

    cuDNN's flash attention wants an Ampere GPU (compute capability 8.0) or newer, 16-bit floats, an even length
    (the mask becomes a bias) and heads of a multiple of 8 and at most 128. All else takes XLA's.
    """
    fits = length % 2 == 0 and head_dimension % 8 == 0 and head_dimension <= _MAX_CUDNN_HEAD
    sixteen_bit = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return "cudnn" if platform == "gpu" and capability >= 8 and sixteen_bit and fits else "xla"


def attention(
    qkv: Float[jax.Array, "n 3*d"], mask: Bool[jax.Array, "B 1 L L"], *, heads: int, fused: bool = True
) -> Float[jax.Array, "n d"]:
    """Multi-head attention of B rows of L positions, n = B * L; `mask` is True where a query may look.

    The columns of `qkv` are all heads' queries, then keys, then values. `fused` allows what suits this process's
    devices alone; a program that is lowered for others takes False.
    """
    batch, length = mask.shape[0], mask.shape[-1]
    width = qkv.shape[-1] // (3 * heads)
    q, k, v = jnp.split(qkv.reshape(batch, length, 3 * heads, width), 3, axis=2)
    implementation: Literal["cudnn", "xla"] = "xla"
    if fused:
        implementation = fused_attention(jax.default_backend(), _capability(), qkv.dtype, length, width)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation).reshape(-1, heads * width)


def _capability() -> float:
    """The compute capability of this process's GPU; 0 without one of NVIDIA's (those of AMD are named, as gfx90a)."""
    device = jax.local_devices()[0]
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    return float(device.compute_capability) if cuda else 0.0


def gelu(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """GELU in its tanh approximation (Hendrycks and Gimpel, 2016), in the dtype of x.

    Written with the logistic function, 0.5 (1 + tanh z) = sigmoid(2 z), which differentiates into fewer passes.
    """
    scale = 2 * math.sqrt(2 / math.pi)
    return x * jax.nn.sigmoid(x * (scale + 0.044715 * scale * x * x))


@jax.custom_vjp
def layer_norm(
    x: Float[jax.Array, "... d"], scale: Float[jax.Array, "d"], bias: Float[jax.Array, "d"]
) -> Float[jax.Array, "... d"]:
    """Normalises over the last axis, in float32, and returns the dtype of x (Ba et al., 2016).

    The gradient is written by hand: differentiating through mean and variance takes twice the passes over x. The
    variance is the mean square less the squared mean, in one pass: right where the mean is within a hundred deviations.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum((wide * wide).mean(-1, keepdims=True) - mean * mean, 0)
    inverse = lax.rsqrt(variance + _EPSILON)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale = residuals
    dy = gradient.astype(jnp.float32)
    unit = (x.astype(jnp.float32) - mean) * inverse
    g = dy * scale
    dx = inverse * (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * unit).sum(rows), dy.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters, named as in `flax.linen.LayerNorm`; returns the dtype of its argument."""

    @nn.compact
    def __call__(self, x: Float[jax.Array, "... d"]) -> Float[jax.Array, "... d"]:
        """Normalises x over its last axis."""
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,), jnp.float32)
        return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, (d,), jnp.float32))


def threefry(
    key: tuple[UInt32[jax.Array, ""], UInt32[jax.Array, ""]], a: UInt32[jax.Array, "..."], b: UInt32[jax.Array, "..."]
) -> tuple[UInt32[jax.Array, "..."], UInt32[jax.Array, "..."]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): 64 random bits for each counter (a, b).

    JAX's own generator by the letter, but unrolled, so that a compiler makes one pass of it (on CPU JAX runs a loop
    over whole arrays), and with both words used (`jax.random.bits` keeps half).
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = a + words[0], b + words[1]
    for group in range(5):
        for shift in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a = a + b
            b = a ^ ((b << shift) | (b >> (32 - shift)))
        a, b = a + words[(group + 1) % 3], b + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


class Dropout:
    """Inverted dropout of `[n, d]` rows by one key; which numbers are kept is a function of (key, site, row, column).

    The rate is rounded to 2**-16 and survivors are scaled by the rounded rate, so expectations are exact.
    """

    def __init__(self, rate: float, key: jax.Array | None, numbers: Int[jax.Array, "n"] | None = None) -> None:
        """`key` is None to drop nothing; `numbers` are those of the rows, 0, 1, ... if None."""
        self._numbers = numbers
        self._dropped = round(rate * _LEVELS)
        self._key = None if key is None or self._dropped == 0 else jax.random.bits(key, (2,), jnp.uint32)

    def __call__(self, x: Float[jax.Array, "n d"], site: int) -> Float[jax.Array, "n d"]:
        """Drops from x; calls that may not share their draws pass different sites."""
        if self._key is None:
            return x
        if self._dropped >= _LEVELS:
            return jnp.zeros_like(x)
        n, d = x.shape
        columns = -(-d // 4)  # each counter gives four numbers of 16 bits
        row, column = (lax.broadcasted_iota(jnp.uint32, (n, columns), axis) for axis in (0, 1))
        if self._numbers is not None:
            row = jnp.broadcast_to(self._numbers.astype(jnp.uint32)[:, None], row.shape)
        words = threefry((self._key[0], self._key[1]), row, column + jnp.uint32(site * columns))
        keep = jnp.concatenate([part >= self._dropped for w in words for part in (w & 0xFFFF, w >> 16)], axis=-1)
        scale = _LEVELS / (_LEVELS - self._dropped)
        return jnp.where(keep[:, :d], x * jnp.asarray(scale, x.dtype), 0)


def dropout(backbone: Any, train: bool, layout: SequenceLayout) -> Dropout:
    """The dropout of a backbone with the field `dropout`: what is kept follows the position in the global batch."""
    key = backbone.make_rng("dropout") if train and backbone.dropout else None
    if layout.row is None:
        return Dropout(backbone.dropout, key)
    length = layout.mask.shape[1]
    numbers = layout.row_numbers()[:, None] * length + jnp.arange(length, dtype=jnp.int32)
    return Dropout(backbone.dropout, key, numbers.reshape(-1))
