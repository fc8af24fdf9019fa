"""BERT4Rec: a transformer that looks both ways, trained to fill in hidden items (Sun et al., CIKM 2019).

Some items of a training history are replaced by one learned mask token; the state at its place is scored against all
items. To predict, the token is put behind the history. The paper's output layer (a projection with GELU) is left out:
states are scored as those of the other backbones, so that losses and item encoders compose.

Left open by the paper, and decided here: positions count from the newest item, so that what is to be predicted and the
item before it stand at the same two positions in every history, in training as in prediction. And items, positions and
the token enter at equal length, whatever the length of item vectors: at 1/100 of an item's, positions are not seen.
And attention starts as a mean of what it looks at (`copying`): SASRec's state begins with the newest item, which is
likely to be like the next one, and the mask token's begins with nothing that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer
from jaxtyping import Bool, Float, Int

from spectran_jax.backbones.layers import INIT, history_mask
from spectran_jax.backbones.transformer import Transformer
from spectran_jax.gather import gather_rows
from spectran_jax.layout import SequenceLayout
from spectran_jax.objectives.scores import normalize

UNIT = nn.initializers.normal(1.0)
"""Of the mask token and of positions, which are stored as they enter: an optimiser's step is small against them."""


def copying(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
) -> Float[jax.Array, "a b"]:
    """Weights that hand on what they are given, and little noise: `INIT`, and the identity in the last columns.

    Those of `[d, 3 d]` are the values, of queries, keys and values; of `[d, d]` all. With both, values leave attention
    as they came, whatever the heads.
    """
    rows, columns = shape
    identity = jnp.eye(rows, columns, k=columns - rows, dtype=dtype)
    return INIT(key, shape, dtype, out_sharding) + identity


class BERT4Rec(Transformer):
    """The backbone; a state depends on all items of its history that `layout.hidden` does not hide."""

    task: ClassVar[Literal["next", "masked"]] = "masked"
    position_name: ClassVar[str] = "newest_position_embedding"
    position_init: ClassVar[Initializer] = staticmethod(UNIT)
    attention_init: ClassVar[Initializer] = staticmethod(copying)

    def visible(self, layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
        """The same history, both ways."""
        return history_mask(layout)

    def inputs(
        self, item_vectors: Float[jax.Array, "B L d"], positions: Float[jax.Array, "P d"], layout: SequenceLayout
    ) -> Float[jax.Array, "B L d"]:
        """Item vectors, the mask token in the place of those that are hidden, and positions from the newest item.

        All enter at a root mean square of one, token and positions at the start.
        """
        token = self.param("mask_token", UNIT, (self.dimension,), jnp.float32)
        x = normalize(item_vectors) * self.dimension**0.5
        if layout.hidden is not None:
            x = jnp.where(jnp.asarray(layout.hidden)[..., None], token.astype(self.dtype), x)
        return x + gather_rows(positions, from_newest(layout)).astype(self.dtype)


def from_newest(layout: SequenceLayout) -> Int[jax.Array, "B L"]:
    """int32: 0 at the last position of each history, 1 before it, ...; 0 on padding."""
    here = lax.broadcasted_iota(jnp.int32, layout.segment.shape, 1)
    last = lax.cummin(jnp.where(layout.last_positions(), here, here.shape[1]), axis=1, reverse=True)
    return jnp.where(layout.mask, last - here, 0)
