"""SASRec: a causal transformer over the item history (Kang and McAuley, ICDM 2018).

Pre-norm blocks with GELU, as later implementations found more stable than the paper's post-norm with ReLU.
Attention probabilities are not dropped out, so that fused attention kernels apply; block outputs are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

from spectran_jax.layout import SequenceLayout

_INIT = nn.initializers.normal(0.02)


def causal_mask(layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
    """True where a query (third axis) may attend to a key (fourth): not later, and of the same history.

    Every position may attend to itself, padding included, so that no softmax is over nothing.
    """
    segment = jnp.asarray(layout.segment)
    length = segment.shape[1]
    same = (segment[:, :, None] == segment[:, None, :]) & jnp.asarray(layout.mask)[:, None, :]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return ((same & causal) | jnp.eye(length, dtype=bool))[:, None]


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual."""

    heads: int
    dropout: float
    ffn_multiplier: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B L d"], mask: Bool[jax.Array, "B 1 L L"], *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Returns the block's output; `mask` is True where attention may look."""
        d = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        h = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=_INIT, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, d // self.heads), 3, axis=2)
        h = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        x = x + drop(nn.Dense(d, dtype=self.dtype, kernel_init=_INIT, name="attention_out")(h))
        h = nn.LayerNorm(dtype=self.dtype, name="ffn_norm")(x)
        h = nn.gelu(nn.Dense(self.ffn_multiplier * d, dtype=self.dtype, kernel_init=_INIT, name="ffn_in")(h))
        return x + drop(nn.Dense(d, dtype=self.dtype, kernel_init=_INIT, name="ffn_out")(h))


class SASRec(nn.Module):
    """The backbone; the state at position t depends on items 0..t of the same history alone."""

    dimension: int
    max_length: int
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.3
    ffn_multiplier: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Maps `[B, L, d]` item vectors to `[B, L, d]` user states in the compute dtype.

        Item vectors are scaled by sqrt(d) before the position embedding is added, as in the paper's code,
        and the sum is layer-normalised, so only the ratio of item to position counts.
        """
        d = self.dimension
        positions = self.param("position_embedding", _INIT, (self.max_length, d), jnp.float32)
        x = item_vectors.astype(self.dtype) * d**0.5 + positions.astype(self.dtype)[layout.position]
        x = nn.LayerNorm(dtype=self.dtype, name="input_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mask = causal_mask(layout)
        for index in range(self.blocks):
            x = Block(self.heads, self.dropout, self.ffn_multiplier, self.dtype, name=f"block_{index}")(
                x, mask, train=train
            )
        return nn.LayerNorm(dtype=self.dtype, name="output_norm")(x)
