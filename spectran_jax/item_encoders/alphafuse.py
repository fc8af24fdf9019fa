"""`alphafuse`: frozen text in some dimensions, learned IDs in the others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.id import IdEncoder
from spectran_jax.item_encoders.semantic import spectral_arrays
from spectran_jax.item_encoders.svd import SvdEncoder


class AlphaFuseEncoder(IdEncoder, kw_only=True):
    """`alphafuse`: e = [c u_1 .. c u_(d_s), e_id]: the head of the spectrum, frozen, beside d - d_s learned dimensions.

    Hu et al., AlphaFuse: Learn ID Embeddings for Sequential Recommendation in Null Space of Language Embeddings, SIGIR
    2025. The SVD of the text splits its space into a row space (large singular values) and a null space (small ones):
    text keeps its standardised coordinates in the former, is clipped from the latter, and IDs are learned there. In
    the basis of the singular vectors this is a concatenation: the text embedding V_s u_s plus an ID embedding V_n e_id,
    with the columns of V_s and V_n orthonormal, has the same inner products as [u_s, e_id]. So the two parts are
    orthogonal for any pair of items, and no training changes the text.

    The paper draws the border at a singular value where d = m, and by number where d is smaller, 64 of 128. Decided
    here: by number, d_n = round(`--null_share` * d). Its code also knows a variant that leaves the text in the null
    space and adds IDs to it; the paper's clips. The scales, 1 for text and 0 or 1 for IDs there, are
    `--semantic_scale` and `--id_scale`, as for all encoders; `--spectral_power` is not read: text is standardised.
    There is nothing to fuse. Items in no training have no ID part, as ever.
    """

    null_dimension: int
    """d_n, learned dimensions."""

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "u")
    wide_arrays: ClassVar[tuple[str, ...]] = ("u",)
    needs_spectrum: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class; raises `InputError` for a share that leaves one of the parts no dimension."""
        spectral_arrays(config, source)  # complains of --dimension itself and not of a part of it
        return {**super().options(config, source, dtype), "null_dimension": _null_dimension(config)}

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`u [N, n]` as stored, n = min(d_s, r); `weights [n]`, what its columns are multiplied by; `trained [N]`."""
        part = dataclasses.replace(config, dimension=config.dimension - _null_dimension(config), spectral_power=0.0)
        arrays = SvdEncoder.frozen(source, part)
        weights = config.semantic_scale * arrays["weights"] * arrays.pop("u_scale", 1.0)
        return {**arrays, "weights": weights.astype(np.float32)}

    @property
    def table_width(self) -> int:
        """d_n."""
        return self.null_dimension

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """Text, zeros where it has fewer than d_s components, then IDs."""
        text = (rows["u"].astype(jnp.float32) * self._frozen("weights")).astype(self.dtype)
        identity = self.identity(rows).astype(self.dtype)
        missing = self.dimension - self.null_dimension - text.shape[-1]
        return jnp.concatenate([text, jnp.zeros((*text.shape[:-1], missing), self.dtype), identity], axis=-1)


def _null_dimension(config: EncoderConfig) -> int:
    learned = round(config.null_share * config.dimension)
    if not 0 < learned < config.dimension:
        raise InputError(
            f"--null_share={config.null_share} of --dimension={config.dimension} leaves no dimension to "
            f"{'the IDs' if learned == 0 else 'the text'}; take a share nearer to 0.5, or more dimensions."
        )
    return learned
