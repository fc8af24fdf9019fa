"""The transformer encoder that `sasrec` and `bert4rec` share; they differ in what goes in and who may look at whom.

Pre-norm blocks, as in SASRec's paper and more stable than BERT4Rec's post-norm, with GELU, as in BERT4Rec's.
Attention probabilities are not dropped out, so that fused attention kernels apply; block outputs are.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Bool, Float

from spectran_jax.backbones.layers import INIT, Dropout, LayerNorm, attention, dropout, gelu
from spectran_jax.layout import SequenceLayout


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual."""

    heads: int
    ffn_multiplier: int
    dtype: Any = jnp.float32
    attention_init: Initializer = INIT
    """Of the matrices that attention's values pass through, and of queries and keys."""
    fused: bool = True

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "n d"], mask: Bool[jax.Array, "B 1 L L"], drop: Dropout, site: int
    ) -> Float[jax.Array, "n d"]:
        """Returns the block's output, n = B * L.

        `mask` is True where attention may look; `site` and `site + 1` are the block's own places to drop.
        """
        d = x.shape[-1]

        def dense(features: int, name: str, init: Initializer = INIT) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        h = dense(3 * d, "qkv", self.attention_init)(LayerNorm(name="attention_norm")(x))
        h = attention(h, mask, heads=self.heads, fused=self.fused)
        x = x + drop(dense(d, "attention_out", self.attention_init)(h), site)
        h = gelu(dense(self.ffn_multiplier * d, "ffn_in")(LayerNorm(name="ffn_norm")(x)))
        return x + drop(dense(d, "ffn_out")(h), site + 1)


class Transformer(nn.Module):
    """Items and positions, a norm, blocks, a norm. A subclass says what goes in and what may be looked at."""

    dimension: int
    row_length: int
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.3
    ffn_multiplier: int = 4
    dtype: Any = jnp.float32
    fused: bool = True
    """Whether attention may be a kernel of this process's devices; see `layers.attention`."""

    task: ClassVar[Literal["next", "masked"]]
    reads_time: ClassVar[bool] = False
    position_name: ClassVar[str] = "position_embedding"
    """The parameter of position embeddings, named for where positions count from, so that none is read as another."""
    position_init: ClassVar[Initializer] = staticmethod(INIT)
    attention_init: ClassVar[Initializer] = staticmethod(INIT)

    def visible(self, layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
        """True where a query (third axis) may attend to a key (fourth)."""
        raise NotImplementedError

    def inputs(
        self, item_vectors: Float[jax.Array, "B L d"], positions: Float[jax.Array, "P d"], layout: SequenceLayout
    ) -> Float[jax.Array, "B L d"]:
        """What stands at each position, in the compute dtype; the table of position embeddings is float32.

        The result is layer-normalised, so only the ratio of item to position counts.
        """
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool
    ) -> Float[jax.Array, "B L d"]:
        """Maps `[B, L, d]` item vectors to `[B, L, d]` user states in the compute dtype."""
        d = self.dimension
        positions = self.param(self.position_name, self.position_init, (self.row_length, d), jnp.float32)
        drop = dropout(self, train, layout)
        mask = self.visible(layout)
        x = self.inputs(item_vectors.astype(self.dtype), positions, layout)
        x = drop(LayerNorm(name="input_norm")(x.reshape(-1, d)), 0)
        for index in range(self.blocks):
            init, name = type(self).attention_init, f"block_{index}"
            block = Block(self.heads, self.ffn_multiplier, self.dtype, init, self.fused, name=name)
            x = block(x, mask, drop, 2 * index + 1)
        return LayerNorm(name="output_norm")(x).reshape(item_vectors.shape)
