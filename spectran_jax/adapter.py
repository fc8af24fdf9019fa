"""SpecTran's adapter: sparse attention over the spectrum of the item text, and a spectral position encoding.

Cui et al., SpecTran, SIGIR 2026 (arXiv 2601.21986). The shapes of this file: N items, r spectral components,
d output dimensions, k dimensions of queries and keys, P the order of the Taylor map.

    Z      = Q K^T / sqrt(k)                     [d, r]
    phi(Z) = sign(Z) max(|Z| - lambda, 0)        [d, r]
    A      = diag(p(sigma_1), p(sigma_2), ...)   [d, r], p(s) = sum_j c_j s^j
    W      = phi(Z) + A                          [d, r], with orthonormal rows
    E_s    = u W^T                               [N, d]

docs/scale.md derives the scales at start. The paper leaves k, P, the initialisation and any normalisation
open; each is an option here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from spectran_jax.errors import unknown_name
from spectran_jax.initial_scale import equal_row_normal, initial_scale, inverse_softplus
from spectran_jax.orthonormal import orthonormal_rows

ATTENTIONS = ("softshrink", "softmax", "none")
NORMS = ("orthonormal", "rows", "none")


def softshrink(z: Float[Array, "..."], threshold: Float[Array, ""] | float) -> Float[Array, "..."]:
    """Softshrink sign(z) max(|z| - threshold, 0): zero within the threshold, shrunk towards zero outside.

    Equal to the proximal operator of threshold * |.|_1. Live entries pass gradients to `z` and `threshold`,
    dead ones to neither.

    Args:
      z: any shape, floating.
      threshold: scalar, at least 0.

    Returns:
      The shape and dtype of `z`.
    """
    return jnp.sign(z) * jax.nn.relu(jnp.abs(z) - threshold)


def spectral_scores(query: Float[Array, "d k"], key: Float[Array, "r k"]) -> Float[Array, "d r"]:
    """Scores Z = Q K^T / sqrt(k) of every output dimension against every spectral component."""
    return jnp.matmul(query, key.T) / math.sqrt(query.shape[-1])


def taylor_map(sigma: Float[Array, "r"], coefficients: Float[Array, "P1"]) -> Float[Array, "r"]:
    """Importance p(sigma) = sum_{j=0..P} c_j sigma^j, elementwise, by Horner's rule; c has P + 1 entries."""
    value = jnp.zeros_like(sigma)
    for j in reversed(range(coefficients.shape[0])):
        value = value * sigma + coefficients[j]
    return value


def principal_diagonal(importance: Float[Array, "n"], dimension: int, rank: int) -> Float[Array, "d r"]:
    """The matrix A: `importance` (n = min(d, r) entries) on the diagonal, zero elsewhere."""
    n = min(dimension, rank)
    return jnp.pad(jnp.diag(importance[:n]), ((0, dimension - n), (0, rank - n)))


AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def component_weights(sigma: AnyArray, dimension: int, power: float) -> AnyArray:
    """Weights w_j = sigma_j^power / c of the components, with c such that the first d have mean square 1.

    u diag(w) cut to d columns is the whitened SVD for power 0 and PCA, up to scale, for power 1; its mean
    variance per dimension is 1 for every power, so the semantic scale means the same for all of them.

    Args:
      sigma: [r] normalised singular values, a NumPy or a JAX array.
      dimension: d.
      power: 0 for whitened, 1 for PCA.

    Returns:
      [r], the kind of array and dtype of `sigma`.
    """
    weights = sigma**power
    head = weights[: min(dimension, weights.shape[0])]
    return weights / (head**2).mean() ** 0.5


def scale_rows(weights: Float[Array, "d r"], length: Float[Array, "d"]) -> Float[Array, "d r"]:
    """Rows of `weights` at the given lengths; zero rows stay zero, with zero gradient."""
    square = jnp.sum(weights**2, axis=-1)
    alive = square > jnp.finfo(weights.dtype).tiny
    factor = jnp.where(alive, length * jax.lax.rsqrt(jnp.where(alive, square, 1)), 0)
    return weights * factor[:, None]


class SpectralParts(NamedTuple):
    """W and what it is made of, before and after normalisation."""

    attention: Float[Array, "d r"] | None
    """phi(Z), exactly 0 where dead; None without attention."""
    diagonal: Float[Array, "n"] | None
    """p(sigma) of the first min(d, r) components; None without position encoding."""
    weights: Float[Array, "d r"]
    """W as it multiplies u: component weights and normalisation included."""


def spectral_weights(
    attention: Float[Array, "d r"] | None,
    diagonal: Float[Array, "n"] | None,
    sigma: Float[Array, "r"],
    *,
    dimension: int,
    power: float = 0.0,
    norm: str = "orthonormal",
) -> Float[Array, "d r"]:
    """The matrix that multiplies u: W = phi(Z) + A, rows normalised, components weighted by sigma^power.

    u has the identity for its covariance, so the covariance of the output dimensions is W W^T.

    - "orthonormal": W is replaced by the nearest matrix with orthonormal rows, and then weighted. For power 0 the
      output is whitened, as the head of the spectrum is: training chooses a d-dimensional subspace of the whole
      spectrum, and can't collapse it into the few directions that lower the loss fastest. Within 1e-3, as long as the
      condition number of W is below 50 (see `orthonormal_rows`); runs on Office and MovieLens-100K end at 2 to 6.
    - "rows": each row has its length held, and may turn towards others.
    - "none": the rows are free, and may shrink.

    In the first two the length of row i is held at w_i, the weight of the i-th component (see `component_weights`; the
    last component's where i >= r): 1 for power 0, and the weighted SVD's own profile for other powers. So no row hides
    in components of small weight.

    Args:
      attention: phi(Z) [d, r], or None for zero.
      diagonal: p(sigma) [min(d, r)], or None for zero.
      sigma: [r] normalised singular values, descending.
      dimension: d.
      power: of sigma in the weight of a component.
      norm: one of `NORMS`.

    Returns:
      [d, r] in the dtype of sigma.
    """
    rank = sigma.shape[0]
    total = jnp.zeros((dimension, rank), sigma.dtype) if attention is None else attention
    if diagonal is not None:
        total = total + principal_diagonal(diagonal, dimension, rank)
    weight = component_weights(sigma, dimension, power)
    if norm == "none":
        return total * weight
    weighted = (orthonormal_rows(total) if norm == "orthonormal" else total) * weight
    length = weight[:dimension]
    return scale_rows(weighted, jnp.pad(length, (0, dimension - length.shape[0]), mode="edge"))


class SpecTranAdapter(nn.Module):
    """Maps spectral coordinates [..., r] to semantic vectors [..., d] of unit scale.

    Parameters (float32): `query [d, k]`, `key [r, k]`, `threshold []` (raw: lambda = softplus(threshold) is never
    negative, and for small lambda a step of the optimiser changes it by a ratio, whatever its scale),
    `taylor [P + 1]`, which starts at p = 1. An adapter that starts here is the whitened SVD plus a little
    attention. Parts that an option leaves out have no parameters.

    Unless `spectral_norm` is "none", only the ratio of a row's diagonal to its attention counts. So without attention
    the Taylor map has no effect but its sign, and the adapter is the frozen (weighted) SVD; to learn the map alone,
    take "none".
    """

    dimension: int
    rank: int
    attention: str = "softshrink"
    attention_dimension: int = 64
    attention_live: float = 0.8
    attention_energy: float = 0.1
    position_encoding: bool = True
    taylor_order: int = 2
    spectral_norm: str = "orthonormal"
    spectral_power: float = 0.0
    dtype: Any = jnp.float32
    """Compute dtype of u W^T. W itself, small, is always float32."""

    def setup(self) -> None:
        """Creates the parameters of the parts that are on."""
        if self.attention not in ATTENTIONS:
            raise unknown_name("attention", self.attention, ATTENTIONS)
        if self.spectral_norm not in NORMS:
            raise unknown_name("spectral norm", self.spectral_norm, NORMS)
        if self.attention != "none":
            scale = initial_scale(
                self.dimension,
                self.rank,
                live=self.attention_live,
                energy=self.attention_energy,
                attention=self.attention,
                diagonal=self.position_encoding,
            )
            k = self.attention_dimension
            self.query = self.param("query", equal_row_normal(scale.factor_std), (self.dimension, k), jnp.float32)
            self.key = self.param("key", nn.initializers.normal(scale.factor_std), (self.rank, k), jnp.float32)
            if self.attention == "softshrink":
                raw = inverse_softplus(scale.threshold)
                self.raw_threshold = self.param("threshold", nn.initializers.constant(raw), (), jnp.float32)
        if self.position_encoding:
            start = lambda _, shape, dtype: jnp.zeros(shape, dtype).at[0].set(1)  # noqa: E731
            self.taylor = self.param("taylor", start, (self.taylor_order + 1,), jnp.float32)

    def parts(self, sigma: Float[Array, "r"]) -> SpectralParts:
        """phi(Z), the diagonal, and W as it multiplies u, all float32."""
        sigma = jnp.asarray(sigma, jnp.float32)
        attention = diagonal = None
        if self.attention == "softshrink":
            attention = softshrink(spectral_scores(self.query, self.key), jax.nn.softplus(self.raw_threshold))
        elif self.attention == "softmax":
            attention = jax.nn.softmax(spectral_scores(self.query, self.key), axis=-1)
        if self.position_encoding:
            diagonal = taylor_map(sigma[: min(self.dimension, self.rank)], self.taylor)
        weights = spectral_weights(
            attention,
            diagonal,
            sigma,
            dimension=self.dimension,
            power=self.spectral_power,
            norm=self.spectral_norm,
        )
        return SpectralParts(attention, diagonal, weights)

    def __call__(
        self, u_rows: Num[Array, "*b r"], sigma: Float[Array, "r"], u_scale: Float[Array, "r"] | float = 1.0
    ) -> Float[Array, "*b d"]:
        """Semantic vectors E_s = u W^T [..., d], accumulated and returned in float32; W is built once a call.

        Args:
          u_rows: spectral coordinates of the items asked for as they are stored: any floating dtype, or int8.
          sigma: normalised singular values.
          u_scale: what a stored coordinate of each component is multiplied by.
        """
        weights = self.parts(sigma).weights * u_scale  # onto W, of d rows, instead of onto the items
        return jnp.matmul(u_rows.astype(self.dtype), weights.T.astype(self.dtype), preferred_element_type=jnp.float32)

    def diagnostics(self, sigma: Float[Array, "r"]) -> dict[str, Array]:
        """What to watch through training; see `diagnostics`, plus `threshold` and `taylor` where they exist."""
        values = diagnostics(self.parts(sigma))
        if self.attention == "softshrink":
            values["threshold"] = jax.nn.softplus(self.raw_threshold)
        if self.position_encoding:
            values["taylor"] = self.taylor
        return values


ENERGY_BINS = 64
"""Of `component_energy`."""


def energy_bin_width(rank: int) -> int:
    """Components in a bin of `component_energy`."""
    return -(-rank // ENERGY_BINS)


def diagnostics(parts: SpectralParts) -> dict[str, Array]:
    """State of the attention and the diagonal as small float32 arrays; cheap, for use under jit.

    Keys, where the parts exist: `attention_live` (share of entries that are not 0), `attention_row_energy` and
    `diagonal_row_energy` (sums of squares of phi(Z) and A over d), `attention_energy` (their ratio), and always
    `tail_energy` (share of the energy of W beyond the first d components) and `component_energy` (its share by
    component, neighbours together in at most `ENERGY_BINS` bins of one width).
    """
    d, rank = parts.weights.shape
    energy = jnp.sum(parts.weights**2, axis=0)
    energy = energy / jnp.maximum(energy.sum(), 1e-12)
    width = energy_bin_width(rank)
    bins = jnp.pad(energy, (0, -rank % width)).reshape(-1, width).sum(axis=1)
    values = {"tail_energy": energy[d:].sum(), "component_energy": bins}
    if parts.attention is not None:
        values["attention_live"] = jnp.mean(parts.attention != 0, dtype=jnp.float32)
        values["attention_row_energy"] = jnp.sum(parts.attention**2) / d
    if parts.diagonal is not None:
        values["diagonal_row_energy"] = jnp.sum(parts.diagonal**2) / d
    if parts.attention is not None and parts.diagonal is not None:
        values["attention_energy"] = values["attention_row_energy"] / jnp.maximum(values["diagonal_row_energy"], 1e-12)
    return values
