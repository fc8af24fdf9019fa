"""`svd`: the frozen head of the spectrum."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spectran_jax.adapter import component_weights
from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.semantic import SemanticEncoder, spectral_arrays


class SvdEncoder(SemanticEncoder):
    """`svd`: the frozen top-d spectral coordinates, whitened or weighted by sigma^power, plus a learned ID part.

    Equals `spectran` without attention and with p = 1, at the cost of [N, d] frozen numbers. The coordinates
    have mean variance 1 over their dimensions (see `component_weights`).
    """

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`coordinates [N, d]` float32 (zero beyond the rank) and `trained [N]`."""
        u, sigma = spectral_arrays(config, source)
        n = min(config.dimension, len(sigma))
        weights = component_weights(sigma, config.dimension, config.spectral_power)
        coordinates = np.zeros((len(u), config.dimension), np.float32)
        coordinates[:, :n] = u[:, :n] * weights[:n]
        return {"coordinates": coordinates, **super().frozen(source, config)}

    def rows(self, ids: Int[Array, "*b"] | None) -> Rows:
        """`coordinates [..., d]` beside the rows of the ID part."""
        return {"coordinates": self._frozen("coordinates", ids), **super().rows(ids)}

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """The coordinates as they are."""
        return rows["coordinates"].astype(jnp.float32)

    def semantic_rms(self) -> Float[Array, ""]:
        """See the base class."""
        coordinates = self._frozen("coordinates").astype(jnp.float32)
        with_text = jnp.any(coordinates != 0, axis=-1).sum(dtype=jnp.float32)
        return jnp.sqrt(jnp.sum(coordinates**2) / (jnp.maximum(with_text, 1) * self.dimension))
