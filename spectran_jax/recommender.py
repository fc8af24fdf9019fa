"""The model: an item encoder and a backbone, and the score that both training and ranking use."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int

from spectran_jax.item_encoders import ItemEncoder, StepView
from spectran_jax.layout import SequenceLayout
from spectran_jax.objectives import score_vectors


class ItemTable(NamedTuple):
    """All item vectors of a catalogue: made once for an evaluation, read by every batch of it."""

    vectors: Float[jax.Array, "N d"]
    """float32, ready to score: the inner product with a user state is the score."""
    lengths: Float[jax.Array, "N"]
    """float32: `vectors * lengths` is what the backbone reads."""

    def inputs(self, ids: Int[jax.Array, "*b"]) -> Float[jax.Array, "*b d"]:
        """The vectors of these items as the backbone reads them, float32."""
        return self.vectors[ids] * self.lengths[ids][..., None]

    def with_scores_times(self, factor: Float[jax.Array, "N"]) -> ItemTable:
        """The table in which item i scores `factor[i]`, above 0, times as much; the backbone reads what it did.

        A score below 0 falls where its factor is above 1.
        """
        return ItemTable(self.vectors * factor[..., None], self.lengths / factor)


class Recommender(nn.Module):
    """Item encoder + backbone. The score of a state and an item is the inner product of what the methods return.

    With `score="cosine"` states and items come out at unit length, so that the inner product is the cosine;
    with `"dot"` they come out as they are. In `table`, items unseen in training are `cold_scale` times as long. Frozen
    arrays are read from the collection "frozen".
    """

    item_encoder: ItemEncoder
    backbone: nn.Module
    score: str = "cosine"
    cold_scale: float = 1.0
    """Factor of the scores of items unseen in training, in `table`."""

    def of_items(self, num_items: int) -> Recommender:
        """The same model over another number of items: a part of the catalogue, say."""
        return self.clone(item_encoder=self.item_encoder.clone(num_items=num_items))

    def portable(self) -> Recommender:
        """The same model without kernels of this process's devices: for programs that are lowered for others."""
        plain = lambda module: module.clone(fused=False) if hasattr(module, "fused") else module  # noqa: E731
        return self.clone(item_encoder=plain(self.item_encoder), backbone=plain(self.backbone))

    def encode(self) -> Float[jax.Array, "N d"]:
        """Item vectors of the whole catalogue as the backbone reads them, in the compute dtype."""
        return self.item_encoder.table()

    def read(
        self, inputs: Float[jax.Array, "B L d"], layout: SequenceLayout, *, train: bool = False
    ) -> Float[jax.Array, "B L d"]:
        """User states, float32, of histories of item vectors; the one at a position scores the item after it, that at
        a hidden position the item itself.

        What stands on padding and at hidden positions is read by nothing.
        """
        shown = layout.mask if layout.hidden is None else layout.mask & ~layout.hidden
        inputs = self.item_encoder.contextualize(jnp.where(shown[..., None], inputs, 0), layout, train=train)
        return self.scored(self.backbone(inputs, layout, train=train))

    def scored(self, vectors: Float[jax.Array, "... d"]) -> Float[jax.Array, "... d"]:
        """What is scored of states and of item vectors, float32."""
        return score_vectors(vectors, self.score)

    def table(self) -> ItemTable:
        """The vectors of the whole catalogue, to read and to score."""
        vectors = self.encode().astype(jnp.float32)
        lengths = jnp.ones(len(vectors)) if self.score == "dot" else jnp.linalg.norm(vectors, axis=-1)
        table = ItemTable(self.scored(vectors), lengths)
        if self.cold_scale == 1:
            return table
        return table.with_scores_times(jnp.where(self.item_encoder.trained(), 1.0, self.cold_scale))

    def create(self, item_ids: Int[jax.Array, "B L"], layout: SequenceLayout) -> None:
        """Runs everything that has parameters, auxiliary losses included: what `init` calls."""
        rows = self.item_encoder.rows(item_ids.reshape(-1))
        vectors = self.item_encoder.encode(rows)
        at = jnp.arange(item_ids.size, dtype=jnp.int32)
        item_at = at.reshape(item_ids.shape)
        states = self.read(vectors[item_at], layout)
        view = StepView(vectors, item_at, layout, states, at, jnp.ones(at.shape, jnp.float32))
        self.item_encoder.auxiliary(rows, view)

    def diagnostics(self) -> dict[str, jax.Array]:
        """What the item encoder wants watched through training, by name."""
        return self.item_encoder.diagnostics()
