"""HSTU: hierarchical sequential transduction units (Zhai et al., ICML 2024).

    u, v, q, k = SiLU(norm(x) W)
    x <- x + dropout(u * norm(attention(q, k, v))) W_out + bias

with the pointwise attention of `hstu_attention.py`. There is no feed-forward layer: the gate u takes its place.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from spectran_jax.backbones.hstu_attention import TIME_BUCKETS, Bias, pointwise_attention
from spectran_jax.backbones.layers import INIT, Dropout, LayerNorm, dropout
from spectran_jax.gather import gather_rows
from spectran_jax.layout import SequenceLayout


class HSTUBlock(nn.Module):
    """One unit, with a residual; its biases are its own."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "n d"], layout: SequenceLayout, drop: Dropout, site: int
    ) -> Float[jax.Array, "n d"]:
        """Returns the unit's output, n = B * L; `site` is its place to drop."""
        d, (batch, length) = x.shape[-1], layout.mask.shape
        position = self.param("position_bias", INIT, (length,), jnp.float32)
        time = None
        if layout.timestamp is not None:
            time = self.param("time_bias", INIT, (TIME_BUCKETS,), jnp.float32)
        projected = nn.Dense(4 * d, use_bias=False, dtype=self.dtype, kernel_init=INIT, name="uvqk")(
            LayerNorm(name="input_norm")(x)
        )
        u, *vqk = jnp.split(nn.silu(projected), 4, axis=-1)
        v, q, k = (part.reshape(batch, length, self.heads, d // self.heads) for part in vqk)
        h = pointwise_attention(q, k, v, Bias(position, time), layout).reshape(-1, d)
        h = drop(u * LayerNorm(name="attention_norm")(h), site)
        return x + nn.Dense(d, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out")(h)


class HSTU(nn.Module):
    """The backbone; the state at position t depends on items 0..t of the same history alone, and predicts t + 1."""

    dimension: int
    row_length: int
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.3
    dtype: Any = jnp.float32

    task: ClassVar[Literal["next", "masked"]] = "next"
    reads_time: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Maps `[B, L, d]` item vectors to `[B, L, d]` user states in the compute dtype.

        Item vectors are scaled by sqrt(d) before the position embedding is added, as in the authors' code. Without
        `layout.timestamp` the time bias is left out.
        """
        d = self.dimension
        positions = self.param("position_embedding", INIT, (self.row_length, d), jnp.float32)
        drop = dropout(self, train, layout)
        x = item_vectors.astype(self.dtype) * d**0.5 + gather_rows(positions, layout.position).astype(self.dtype)
        x = drop(x.reshape(-1, d), 0)
        for index in range(self.blocks):
            x = HSTUBlock(self.heads, self.dtype, name=f"block_{index}")(x, layout, drop, index + 1)
        return LayerNorm(name="output_norm")(x).reshape(item_vectors.shape)
