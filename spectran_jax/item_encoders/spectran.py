"""`spectran`: sparse attention over the whole spectrum of the text."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.adapter import SpectralParts, SpecTranAdapter
from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.semantic import SemanticEncoder, spectral_arrays


class SpecTranEncoder(SemanticEncoder, kw_only=True):
    """`spectran`: E_s = u W^T by sparse attention over the whole spectrum (adapter.py), plus a learned ID part.

    Cui et al., SIGIR 2026, arXiv 2601.21986. The frozen arrays are u [N, r] and sigma [r].
    """

    adapter: SpecTranAdapter
    """Its parameters lie under "adapter"."""

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class; raises `InputError` for options that leave no semantic part."""
        if config.attention == "none" and not config.position_encoding:
            raise InputError(
                "--attention=none without --position_encoding leaves nothing of the text; keep one of the two, or "
                "take --item_encoder=id."
            )
        adapter = SpecTranAdapter(
            dimension=config.dimension,
            rank=len(spectral_arrays(config, source)["sigma"]),
            attention=config.attention,
            attention_dimension=config.attention_dimension,
            attention_live=config.attention_live,
            attention_energy=config.attention_energy,
            position_encoding=config.position_encoding,
            taylor_order=config.taylor_order,
            spectral_norm=config.spectral_norm,
            spectral_power=config.spectral_power,
            dtype=dtype,
        )
        return {**super().options(config, source, dtype), "adapter": adapter}

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`u [N, r]`, `sigma [r]` and, for int8, `u_scale [r]` (see `spectral_arrays`), and `trained [N]`."""
        return {**spectral_arrays(config, source), **super().frozen(source, config)}

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """u W^T."""
        return self.adapter(rows["u"], self._frozen("sigma"), self.u_scale())

    def parts(self) -> SpectralParts:
        """phi(Z), the diagonal and W, for reports."""
        return self.adapter.parts(self._frozen("sigma"))

    def semantic_rms(self) -> Float[Array, ""]:
        """From W alone: u has orthonormal columns of unit mean square, so E_s has the mean square row of W."""
        return jnp.sqrt(jnp.sum(self.parts().weights ** 2) / self.dimension)

    def diagnostics(self) -> dict[str, Array]:
        """The adapter's diagnostics beside those of the base class."""
        return {**super().diagnostics(), **self.adapter.diagnostics(self._frozen("sigma"))}
