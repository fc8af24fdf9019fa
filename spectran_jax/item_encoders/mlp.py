"""`mlp`: two layers on the text embedding."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.text import TextAdapterEncoder, TwoLayers


class MlpEncoder(TextAdapterEncoder, kw_only=True):
    """`mlp`: E_s = W_2 relu(W_1 x + b_1) + b_2 of the text embedding x, plus a learned ID part by `--fusion`.

    The adapter of Yuan et al., Where to Go Next for Recommender Systems? ID- vs. Modality-based Recommender Models
    Revisited (MoRec), SIGIR 2023, over a frozen text encoder, as later pipelines (LLM2Rec) use it. Open there, decided
    here: one hidden layer of `--adapter_width` units, and ReLU, for which the scale at start is exact
    (`text.TwoLayers`); x as the decomposition sees it (`text.TextAdapterEncoder`). MoRec replaces the ID by the text:
    `--fusion=none`.
    """

    width: int

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        return {**super().options(config, source, dtype), "width": config.adapter_width}

    def setup(self) -> None:
        """Creates the adapter beside what the base class has."""
        super().setup()
        self.adapter = TwoLayers(self.width, self.dimension, self.dtype)

    def adapt(self, x: Float[Array, "*b m"], rows: Rows) -> Float[Array, "*b d"]:
        """The two layers."""
        return self.adapter(x)
