"""`whiten`: whitened text, whole and in groups of dimensions, through one projection head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError
from spectran_jax.item_encoders.base import ItemSource, Rows
from spectran_jax.item_encoders.semantic import SemanticEncoder
from spectran_jax.item_encoders.text import TwoLayers, sample, survey_text
from spectran_jax.spectral.rows import Survey, SurveyedRows, as_matrix

_RTOL = 1e-4
"""Standard deviations below this share of the largest are dropped and not blown up, as the spectrum's are."""


class WhitenEncoder(SemanticEncoder, kw_only=True):
    """`whiten`: E_s = c (f(Z_1) + f(Z_G)) of fully and of group-wise whitened text, plus an ID part by `--fusion`.

    Zhang et al., Are ID Embeddings Necessary? Whitening Pre-trained Text Embeddings for Effective Sequential
    Recommendation (WhitenRec, WhitenRec+), ICDE 2024. Z_1 is the text by ZCA whitening, (x - mean) C^(-1/2); Z_G is
    whitened within each of G groups of consecutive dimensions, which leaves the correlations between groups: the
    relaxed whitening. One head f serves both, and the results are summed (WhitenRec+); with `--whiten_groups=1` Z_1 is
    alone (WhitenRec). The paper does without IDs: `--fusion=none`.

    Decided here: rows at unit length first, as for the spectrum, and centred whatever `--center` says; directions of a
    standard deviation below 1e-4 of the largest are dropped instead of blown up, also where a group holds no others;
    where G does not divide m, groups differ by one dimension; f has two layers (`text.TwoLayers`, of
    `--adapter_width` hidden units); and c makes the sum's mean square at start 1. C is taken in float64 at set-up, and
    both results, N 2m float32 numbers, are kept: whitening the rows of a step would cost m^2 for each.
    """

    width: int

    item_arrays: ClassVar[tuple[str, ...]] = ("trained", "whitened")
    wide_arrays: ClassVar[tuple[str, ...]] = ("whitened",)
    needs_spectrum: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True

    @classmethod
    def options(cls, config: EncoderConfig, source: ItemSource, dtype: Any) -> dict[str, Any]:
        """See the base class."""
        return {**super().options(config, source, dtype), "width": config.adapter_width}

    @classmethod
    def frozen(cls, source: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """`whitened [N, v, m]`, `view_scale [v]`, `sum_scale []`, `sample [s, v, m]`, float32; and `trained [N]`.

        v is 2, Z_1 and Z_G; 1 for one group. `whitened * view_scale` has mean square 1 in each view, where there
        is text.

        Raises:
          InputError: see `survey_text`; or for more groups than dimensions.
        """
        rows = survey_text(config, dataclasses.replace(source, center=True))
        whitened = _whitened(rows, _views(rows, config))
        chosen = whitened[sample(rows.part)]
        view_scale = 1 / np.sqrt(np.mean(chosen.astype(np.float64) ** 2, axis=(0, 2)))
        return {
            "whitened": whitened,
            "view_scale": view_scale.astype(np.float32),
            "sum_scale": np.asarray(_sum_mean_square(chosen * view_scale[:, None]) ** -0.5, np.float32),
            "sample": chosen,
            **super().frozen(source, config),
        }

    @classmethod
    def new_rows(cls, new: ItemSource, catalogue: ItemSource, config: EncoderConfig) -> dict[str, np.ndarray]:
        """The new text by the catalogue's mean and covariance, which are taken again: one pass over its text."""
        rows = survey_text(config, dataclasses.replace(catalogue, center=True))
        assert new.text is not None
        text = as_matrix(new.text)
        has_text = np.asarray(text.any(axis=1))
        theirs = Survey(text, has_text, normalize=new.normalize_rows, shift=rows.mean)
        return {"whitened": _whitened(theirs, _views(rows, config)), **super().frozen(new, config)}

    def setup(self) -> None:
        """Creates the head beside what the base class has."""
        super().setup()
        self.head = TwoLayers(self.width, self.dimension, self.dtype)

    def semantic(self, rows: Rows) -> Float[Array, "*b d"]:
        """c (f(Z_1) + f(Z_G)); zero for items without text."""
        x = rows["whitened"]
        has_text = jnp.any(x != 0, axis=(-2, -1))
        outputs = self.head(x * self._frozen("view_scale")[:, None]).sum(axis=-2)
        return jnp.where(has_text[..., None], outputs * self._frozen("sum_scale"), 0.0)

    def semantic_rms(self) -> Float[Array, ""]:
        """Measured on a sample of the items: on all with text, up to 1,024."""
        return jnp.sqrt(jnp.mean(self.semantic({"whitened": self._frozen("sample")}) ** 2))


Blocks = list[tuple[slice, Float[np.ndarray, "g g"]]]
"""A block-diagonal matrix: the dimensions of each block, and the block."""


def _views(rows: SurveyedRows, config: EncoderConfig) -> list[Blocks]:
    """`whitenings` of the covariance of these rows; raises `InputError` for more groups than dimensions."""
    m = rows.x.shape[1]
    if config.whiten_groups > m:
        raise InputError(
            f"--whiten_groups={config.whiten_groups} is more than the {m} dimensions of the text embeddings."
        )
    gram = np.zeros((m, m))
    for _, _, chunk in rows.chunks():
        gram += chunk.T @ chunk
    return whitenings(gram / rows.count, config.whiten_groups)


def _whitened(rows: SurveyedRows | Survey, views: list[Blocks]) -> Float[np.ndarray, "N v m"]:
    """float32, the rows in each view; zero where there is no text."""
    items, m = rows.x.shape
    whitened = np.zeros((items, len(views), m), np.float32)
    for where, part, chunk in rows.chunks():
        made = [np.concatenate([chunk[:, at] @ matrix for at, matrix in view], axis=1) for view in views]
        whitened[np.flatnonzero(part) + where.start] = np.stack(made, axis=1)
    return whitened


def whitenings(covariance: Float[np.ndarray, "m m"], groups: int) -> list[Blocks]:
    """C^(-1/2) of the whole covariance and, for more than one group, of the covariance within each group."""
    m = len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    least = _RTOL**2 * values[-1]
    views: list[Blocks] = [[(slice(0, m), _inverse_root(values, vectors, least))]]
    if groups > 1:
        parts = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(m), groups)]
        views.append([(at, _inverse_root(*np.linalg.eigh(covariance[at, at]), least)) for at in parts])
    return views


def _inverse_root(
    values: Float[np.ndarray, "g"], vectors: Float[np.ndarray, "g g"], least: float
) -> Float[np.ndarray, "g g"]:
    """V diag(values)^(-1/2) V^T over the values above `least`."""
    kept = values > least
    return (vectors[:, kept] * values[kept] ** -0.5) @ vectors[:, kept].T


def _sum_mean_square(x: Float[np.ndarray, "s v m"]) -> float:
    """Expected mean square, over items and dimensions, of f(x_1) + ... + f(x_v) with f at its start.

    E[f(a) f(b)] = |a||b| / m * (sin t + (pi - t) cos t) / pi with t the angle of a and b (Cho and Saul, Kernel Methods
    for Deep Learning, NeurIPS 2009, equation 6).
    """
    inner = np.einsum("svm,swm->svw", x, x)
    length = np.sqrt(np.einsum("svv->sv", inner))
    product = length[:, :, None] * length[:, None, :]
    cosine = np.clip(np.divide(inner, product, out=np.zeros_like(inner), where=product > 0), -1, 1)
    angle = np.arccos(cosine)
    kernel = product / x.shape[-1] * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    return float(kernel.sum(axis=(1, 2)).mean())
