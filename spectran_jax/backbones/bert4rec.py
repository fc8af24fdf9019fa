"""BERT4Rec: a transformer that looks both ways, trained to fill in hidden items (Sun et al., CIKM 2019).

Some items of a training history are replaced by one learned mask token; the state at its place is scored against all
items. To predict, the token is put behind the history. The paper's output layer (a projection with GELU) is left out:
states are scored as those of the other backbones, so that losses and item encoders compose.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from spectran_jax.backbones.layers import INIT, history_mask
from spectran_jax.backbones.transformer import Transformer
from spectran_jax.layout import SequenceLayout


class BERT4Rec(Transformer):
    """The backbone; a state depends on all items of its history that `layout.hidden` does not hide."""

    task: ClassVar[Literal["next", "masked"]] = "masked"

    def visible(self, layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
        """The same history, both ways."""
        return history_mask(layout)

    def shown(self, item_vectors: Float[jax.Array, "B L d"], layout: SequenceLayout) -> Float[jax.Array, "B L d"]:
        """The item vectors, with the mask token in the place of those that are hidden."""
        token = self.param("mask_token", INIT, (self.dimension,), jnp.float32)
        if layout.hidden is None:
            return item_vectors
        return jnp.where(jnp.asarray(layout.hidden)[..., None], token.astype(self.dtype), item_vectors)
