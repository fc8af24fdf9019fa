"""`id`: one learned vector an item."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemEncoder, ItemSource, Rows


class IdEncoder(ItemEncoder, kw_only=True):
    """`id`: one learned vector an item, no text. The plain sequential recommender.

    `id_embedding [N, d]` starts normal with standard deviation `id_scale`. A cosine score does not see the
    scale, but an optimiser with steps of fixed size (Adam) does: a vector turns by about learning rate / id_scale
    a step. 0.02 is the field's habit and stands well above a step of 1e-3; it is one flag for all encoders, so
    that ID parts compare. `sasrec` and `hstu` multiply the vectors by sqrt(d) before they add position embeddings of
    scale 0.02; `bert4rec` takes vectors of any length as equally long.

    Items that appear in no training sequence have a zero ID part: training would only push them away.
    """

    dimension: int
    id_scale: float = 0.02
    dtype: Any = jnp.float32

    item_params: ClassVar[tuple[str, ...]] = ("id_embedding",)
    item_arrays: ClassVar[tuple[str, ...]] = ("trained",)

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        if config.id_scale == 0 and (config.semantic_scale == 0 or not cls.knows_cold_items()):
            raise InputError(
                "--id_scale=0 starts all item vectors at zero, where they stay, unless there is text beside the IDs; "
                "give a number above 0."
            )
        return {
            "num_items": source.num_items,
            "dimension": config.dimension,
            "id_scale": config.id_scale,
            "dtype": dtype,
        }

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`trained [N]` bool: True for items with training interactions."""
        return {"trained": np.asarray(source.counts) > 0}

    @property
    def table_width(self) -> int:
        """Columns of the ID table: d, or less where a subclass learns some of the dimensions only."""
        return self.dimension

    def setup(self) -> None:
        """Creates the ID table."""
        init = nn.initializers.normal(self.id_scale)
        self.id_embedding = self.param("id_embedding", init, (self.num_items, self.table_width), jnp.float32)

    def rows(self, ids: Int[Array, "*b"] | None) -> Rows:
        """`identity [..., d]` and the frozen arrays."""
        identity = self.id_embedding if ids is None else self.id_embedding[ids]
        return {"identity": identity, **super().rows(ids)}

    def identity(self, rows: Rows) -> Float[Array, "*b d"]:
        """The ID part, as it is stored: zero for items absent from training."""
        # A product, and not a choice: of rows that are only chosen and rounded, TPUs round the whole table first.
        return rows["identity"] * rows["trained"][..., None].astype(jnp.float32)

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """The ID part alone."""
        return self.identity(rows).astype(self.dtype)

    def diagnostics(self) -> dict[str, Array]:
        """`id_rms`: root mean square of the ID part over the trained items."""
        trained = self._frozen("trained")
        count = jnp.maximum(trained.sum(dtype=jnp.float32), 1) * self.table_width
        square = jnp.where(trained[:, None], self.id_embedding, 0) ** 2
        return {"id_rms": jnp.sqrt(square.sum() / count)}
