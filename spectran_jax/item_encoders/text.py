"""What encoders of the text embedding itself share: its statistics, its rows on the device, the two-layer adapter."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.semantic import SemanticEncoder
from spectran_jax.spectral.rows import CHUNK_BYTES, SurveyedRows, as_matrix, survey

_SAMPLE = 1024
"""Items that the scale of the semantic part is measured on through training."""


def survey_text(config: EncoderConfig, source: ItemSource) -> SurveyedRows:
    """The rows of the items with text as the decomposition sees them; one pass over the text, float64 in chunks.

    Raises:
      InputError: for text of other items, with NaN or inf, or the same for all items.
    """
    assert source.text is not None  # `item_encoders.build` refuses
    text = as_matrix(source.text)
    if len(text) != source.num_items:
        raise InputError(
            f"The text embeddings have {len(text)} rows, the catalogue {source.num_items} items; they must agree."
        )
    step = max(1, CHUNK_BYTES // (8 * text.shape[1]))
    starts = range(0, len(text), step)
    part = np.concatenate([np.asarray(text[start : start + step]).any(axis=1) for start in starts])
    rows = survey(text, part, normalize=source.normalize_rows, center=source.center)
    if not spread(rows) > rows.noise**2:
        raise InputError(
            f"--item_encoder={config.item_encoder} needs text embeddings that differ, and those of all {rows.count} "
            "items with text are the same."
        )
    return rows


def spread(rows: SurveyedRows) -> float:
    """Sum of squares of the scaled and, where they are, centred rows."""
    return rows.energy - rows.count * float(rows.mean @ rows.mean)


def sample(part: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "s"]:
    """Up to 1,024 of the items with text, evenly spread."""
    items = np.flatnonzero(part)
    return items[np.linspace(0, len(items) - 1, min(_SAMPLE, len(items))).astype(int)]


class TwoLayers(nn.Module):
    """Dense, ReLU, dense: [..., m] to [..., d] float32, of unit mean square at start where the input is.

    ReLU passes half of the square of anything symmetric, whatever its length. So with kernels of variance 1 / m and
    2 / width the expected mean square of the outputs is that of the inputs, exactly.
    """

    width: int
    dimension: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b d"]:
        """Parameters: `hidden` and `output`, each `kernel` and `bias`."""
        first, second = (nn.initializers.variance_scaling(gain, "fan_in", "normal") for gain in (1.0, 2.0))
        hidden = nn.Dense(self.width, kernel_init=first, dtype=self.dtype, name="hidden")(x)
        return nn.Dense(self.dimension, kernel_init=second, dtype=self.dtype, name="output")(
            jax.nn.relu(hidden)
        ).astype(jnp.float32)


class TextAdapterEncoder(SemanticEncoder, kw_only=True):
    """E_s by a learned adapter of the text embedding.

    Text is read as the decomposition reads it: rows of unit length, less their mean (`--normalize_rows`, `--center`);
    and then all at one scale, which makes the mean square of a number 1. Embeddings stay as they are stored, and are
    converted a row at a time on the device.
    """

    normalize_rows: bool = True

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "text")
    wide_arrays: ClassVar[tuple[str, ...]] = ("text",)
    needs_spectrum: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        return {**super().options(config, source, dtype), "normalize_rows": source.normalize_rows}

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`text [N, m]` as stored, `mean [m]` and `input_scale []` float32, `sample [s, m]`; and `trained [N]`."""
        rows = survey_text(config, source)
        size = rows.count * rows.x.shape[1]
        return {
            "text": rows.x,
            "mean": rows.mean.astype(np.float32),
            "input_scale": np.asarray((size / spread(rows)) ** 0.5, np.float32),
            "sample": np.asarray(rows.x[sample(rows.part)]),
            **super().frozen(source, config),
        }

    @classmethod
    def new_rows(cls, new: ItemSource, catalogue: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """The text as it is stored: what it is measured by is the catalogue's."""
        assert new.text is not None
        return {"text": as_matrix(new.text), **super().frozen(new, config)}

    def adapt(self, x: Float[Array, "*b m"], rows: Rows) -> Float[Array, "*b d"]:
        """E_s, float32, of text of unit mean square."""
        raise NotImplementedError

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """`adapt` of the text; zero for items without."""
        x = rows["text"].astype(jnp.float32)
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        has_text = largest > 0
        if self.normalize_rows:
            x = jnp.ldexp(x, -jnp.frexp(largest)[1])  # exact; squares of tiny or huge numbers would be 0 or infinite
            square = jnp.sum(x * x, axis=-1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.where(has_text, square, 1.0))
        x = (x - self._frozen("mean")) * self._frozen("input_scale")
        return jnp.where(has_text, self.adapt(x, rows), 0.0)

    def semantic_rms(self) -> Float[Array, ""]:
        """Measured on a sample of the items: on all with text, up to 1,024."""
        return jnp.sqrt(jnp.mean(self.semantic({"text": self._frozen("sample")}) ** 2))
