"""What encoders with a semantic and an ID part share: the scale, the fusion, the checks of the spectrum."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.fusion import Fusion
from spectran_jax.item_encoders.base import ItemEncoder, ItemSource, Rows
from spectran_jax.item_encoders.id import IdEncoder


class SemanticEncoder(IdEncoder, kw_only=True):
    """A semantic part E_s of unit scale, times the semantic scale, fused with a learned ID part.

    With `fusion` "none" the semantic part is all there is: no ID table exists, and an item without text is zero.
    """

    fusion: str = "sum"
    semantic_scale: float
    learn_scale: bool = False

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "u")
    wide_arrays: ClassVar[tuple[str, ...]] = ("u",)
    needs_spectrum: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        if config.fusion == "none" and config.semantic_scale == 0:
            raise InputError(
                "--semantic_scale=0 with --fusion=none leaves nothing of an item; give a scale above 0, or a fusion "
                "with an ID part."
            )
        return {
            **super().options(config, source, dtype),
            "fusion": config.fusion,
            "semantic_scale": config.semantic_scale,
            "learn_scale": config.learn_scale,
        }

    def setup(self) -> None:
        """Creates the ID table, the fusion (neither without an ID part) and, where learned, the scale."""
        if self.has_identity:
            super().setup()
            self.fuse = Fusion(kind=self.fusion, dtype=self.dtype)
        if self.learn_scale:
            init = nn.initializers.constant(self.semantic_scale)
            self.learned_scale = self.param("learned_scale", init, (), jnp.float32)

    @property
    def has_identity(self) -> bool:
        """Whether there is an ID part."""
        return self.fusion != "none"

    def rows(self, ids: Int[Array, "*b"] | None) -> Rows:
        """The rows of the text and, if there is one, of the ID part."""
        return super().rows(ids) if self.has_identity else ItemEncoder.rows(self, ids)

    def scale(self) -> Float[Array, ""] | float:
        """The factor of the semantic part, learned or fixed."""
        return self.learned_scale if self.learn_scale else self.semantic_scale

    def u_scale(self) -> Float[Array, "n"] | float:
        """What a stored coordinate of u is multiplied by."""
        return self._frozen("u_scale") if self.has_variable("frozen", "u_scale") else 1.0

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """E_s before the scale, float32: mean square near 1 at start over the items with text."""
        raise NotImplementedError

    def semantic_rms(self) -> Float[Array, ""]:
        """Root mean square of `semantic` over the items with text."""
        raise NotImplementedError

    def encode(self, rows: Rows, *, train: bool = False) -> Float[Array, "*b d"]:
        """fuse(scale * E_s, E_id)."""
        semantic = self.scale() * self.semantic(rows)
        return self.fuse(semantic, self.identity(rows)) if self.has_identity else semantic.astype(self.dtype)

    def diagnostics(self) -> dict[str, Array]:
        """`semantic_scale`, `semantic_rms` and, with an ID part, `id_rms` (both before fusion), `semantic_to_id`."""
        scale = jnp.asarray(self.scale(), jnp.float32)
        values = {"semantic_scale": scale, "semantic_rms": jnp.abs(scale) * self.semantic_rms()}
        if self.has_identity:
            values |= super().diagnostics()
            values["semantic_to_id"] = values["semantic_rms"] / jnp.maximum(values["id_rms"], 1e-12)
        return values


def spectral_arrays(config: EncoderConfig, source: ItemSource) -> dict[str, np.ndarray]:
    """`u [N, r]` as it is stored, `sigma [r]` float32 and, where u is int8, `u_scale [r]` float32: NumPy.

    u = stored u times u_scale. It is not converted here: it may be memory-mapped and larger than memory.

    Raises:
      InputError: where the source has no spectrum, one of other items, or one of fewer components than dimensions
        without `pad_rank`.
    """
    if source.spectrum is None:
        raise InputError(
            f"--item_encoder={config.item_encoder} needs item text, and the data set has none. Give --embeddings or "
            "text columns in --items, or take --item_encoder=id."
        )
    u, scale = np.asarray(source.spectrum.u), source.spectrum.u_scale
    if len(u) != source.num_items:
        raise InputError(f"The spectrum has {len(u)} rows, the catalogue {source.num_items} items; they must agree.")
    if u.shape[1] < config.dimension and not config.pad_rank:
        raise InputError(
            f"The item text has rank {u.shape[1]}, below --dimension={config.dimension} of --item_encoder="
            f"{config.item_encoder}. Take a --dimension of at most {u.shape[1]} that --heads divides, or --pad_rank to "
            "fill up with zeros."
        )
    arrays = {"u": u, "sigma": np.asarray(source.spectrum.sigma, np.float32)}
    return arrays if scale is None else {**arrays, "u_scale": np.asarray(scale, np.float32)}
