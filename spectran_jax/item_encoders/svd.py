"""`svd`: the frozen head of the spectrum."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.adapter import component_weights
from spectran_jax.config import EncoderConfig
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.semantic import SemanticEncoder, spectral_arrays


class SvdEncoder(SemanticEncoder, kw_only=True):
    """`svd`: the frozen top-d spectral coordinates, whitened or weighted by sigma^power, plus a learned ID part.

    Equals `spectran` without attention and with p = 1, at the cost of N x d frozen numbers. The coordinates have
    mean variance 1 over their dimensions (see `component_weights`), and are zero beyond the rank.
    """

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """The first n = min(d, r) columns: `u [N, n]` and `u_scale [n]` as stored, `weights [n]`; and `trained [N]`."""
        arrays = spectral_arrays(config, source)
        sigma = arrays.pop("sigma")
        n = min(config.dimension, len(sigma))
        weights = component_weights(sigma, config.dimension, config.spectral_power)
        head = {name: array[..., :n] for name, array in arrays.items()}  # views: a memory-mapped u stays mapped
        return {**head, "weights": weights[:n], **super().frozen(source, config)}

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """The weighted coordinates, filled up with zeros."""
        coordinates = rows["u"].astype(jnp.float32) * (self._frozen("weights") * self.u_scale())
        missing = self.dimension - coordinates.shape[-1]
        return jnp.pad(coordinates, [(0, 0)] * (coordinates.ndim - 1) + [(0, missing)])

    def semantic_rms(self) -> Float[Array, ""]:
        """From the weights alone: the columns of u have unit mean square."""
        return jnp.sqrt(jnp.sum(self._frozen("weights") ** 2) / self.dimension)
