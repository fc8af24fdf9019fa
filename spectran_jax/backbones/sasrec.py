"""SASRec: a causal transformer over the item history (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
from jaxtyping import Bool, Float

from spectran_jax.backbones.layers import causal_mask
from spectran_jax.backbones.transformer import Transformer
from spectran_jax.gather import gather_rows
from spectran_jax.layout import SequenceLayout


class SASRec(Transformer):
    """The backbone; the state at position t depends on items 0..t of the same history alone, and predicts t + 1."""

    task: ClassVar[Literal["next", "masked"]] = "next"

    def visible(self, layout: SequenceLayout) -> Bool[jax.Array, "B 1 L L"]:
        """The same history, no later."""
        return causal_mask(layout)

    def inputs(
        self, item_vectors: Float[jax.Array, "B L d"], positions: Float[jax.Array, "P d"], layout: SequenceLayout
    ) -> Float[jax.Array, "B L d"]:
        """Item vectors times sqrt(d), as in the authors' code, and embeddings of positions from the oldest item."""
        return item_vectors * self.dimension**0.5 + gather_rows(positions, layout.position).astype(self.dtype)
