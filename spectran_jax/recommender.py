"""The model: an item encoder and a backbone, and the score that both training and ranking use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int

from spectran_jax.layout import SequenceLayout
from spectran_jax.objectives import score_vectors


class Recommender(nn.Module):
    """Item encoder + backbone. The score of a state and an item is the inner product of what the methods return.

    With `score="cosine"` states and items come out at unit length, so that the inner product is the cosine;
    with `"dot"` they come out as they are. Frozen arrays are read from the collection "frozen".
    """

    item_encoder: nn.Module
    backbone: nn.Module
    score: str = "cosine"

    def states(
        self, item_ids: Int[jax.Array, "B L"], layout: SequenceLayout, *, train: bool = False
    ) -> Float[jax.Array, "B L d"]:
        """User states, float32; the one at a position scores the item after it."""
        vectors = self.item_encoder(item_ids, train=train)
        vectors = jnp.where(layout.mask[..., None], vectors, 0)
        return self._scored(self.backbone(vectors, layout, train=train))

    def items(self, ids: Int[jax.Array, "..."], *, train: bool = False) -> Float[jax.Array, "... d"]:
        """Vectors to score against, float32, of the items asked for."""
        return self._scored(self.item_encoder(ids, train=train))

    def table(self) -> Float[jax.Array, "N d"]:
        """Vectors to score against of the whole catalogue, float32."""
        return self._scored(self.item_encoder.table())

    def __call__(self, item_ids: Int[jax.Array, "B L"], layout: SequenceLayout) -> Float[jax.Array, "B L d"]:
        """States without dropout; also what `init` runs to create every parameter."""
        return self.states(item_ids, layout)

    def _scored(self, vectors: Float[jax.Array, "... d"]) -> Float[jax.Array, "... d"]:
        return score_vectors(vectors, self.score)

    def diagnostics(self) -> dict[str, jax.Array]:
        """What the item encoder wants watched through training, by name."""
        return self.item_encoder.diagnostics()
