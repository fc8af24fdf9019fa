"""The spectrum of the text embeddings: decompose them once, project new items for ever.

    X - mean = U diag(S) V^T,    u = sqrt(n) U,    sigma = S / S[0]        (design: section 2)

Everything here runs on the host in float64 (LAPACK) and hands out float32 coordinates. It is done once
per catalogue, and float64 is what makes the Gram route safe: squaring X squares its condition number, so
that a float32 Gram matrix is wrong by over 1 % below 5e-4 of the largest singular value. A TPU has no
float64 unit and no float64 eigensolver; it could form X^T X in float32 only, which is that very loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from spectran_jax.errors import InputError

Array = jax.Array | np.ndarray

VERSION = 1
"""Raised whenever the same embeddings would give another spectrum, so that no cache serves the old one."""

METHODS = ("auto", "exact", "gram")
GRAM_FLOOR = 1e-6
"""Smallest singular value, relative to the largest, that the Gram route tells from rounding."""

_CHUNK_BYTES = 32 * 2**20  # of float64 rows held at a time
_EXACT_COST = 2e8  # max(n, m) * min(n, m)**2 up to which `auto` affords the exact route: a fraction of a second


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The thin SVD of a catalogue's text embeddings; a pytree. n of the N items have text.

    `decompose` gives NumPy arrays. `basis`, `mean` and `scale` stay float64, so that `project` gives an old
    item its old coordinates; they are for the host. A model needs `u` and `sigma` only.
    """

    u: Float[Array, "N r"]
    """float32, sqrt(n) U: spectral coordinates of unit variance; zero rows for items without text."""
    sigma: Float[Array, "r"]
    """float32, S / S[0]: 1 = sigma_1 >= sigma_2 >= ... > 0."""
    basis: Float[Array, "m r"]
    """float64, V: orthonormal columns; the largest entry of each is positive."""
    mean: Float[Array, "m"]
    """float64, what was subtracted from each row; zeros where rows were not centred."""
    scale: Float[Array, ""]
    """float64, S[0]."""
    count: Int[Array, ""]
    """int64, n: the items that took part."""

    @property
    def num_items(self) -> int:
        """N, with and without text."""
        return int(self.u.shape[0])

    @property
    def rank(self) -> int:
        """r, the number of components kept."""
        return int(self.sigma.shape[0])


def decompose(
    x: Float[Array, "N m"],
    has_text: Bool[Array, "N"] | None = None,
    *,
    normalize_rows: bool = True,
    center: bool = True,
    rtol: float = 1e-4,
    max_rank: int = 0,
    method: str = "auto",
) -> Spectrum:
    """The spectrum of text embeddings: thin SVD of the centred rows (design: section 2).

    The same `x` always gives the same basis: the largest-magnitude entry of each basis column is made
    positive, the lowest index deciding between entries that are equal to rounding. (Components whose singular
    values coincide span a space in which any basis is as good; there the solver chooses.)

    Routes:
      exact: LAPACK's SVD of the float64 matrix. Keeps every singular value down to about 1e-15 of the
        largest. Holds three float64 matrices of the size of `x`; time N m min(N, m) with a large constant.
      gram: eigenvectors of X^T X (m x m), or of X X^T where there are fewer items than dimensions, summed over
        chunks in float64. Time is linear in N, and beside the result only a chunk (32 MiB) and two square
        matrices are held: a memory-mapped `x` is never copied whole. Singular values are then taken as
        column norms of the projected rows, not as roots of eigenvalues: at condition number 1e6 they are exact to
        1e-9, the roots to 5e-6 only. Components below 1e-6 of the largest can't be told from rounding: a
        smaller `rtol` acts as 1e-6.
      auto: exact where that takes a fraction of a second, or where `rtol` asks for more than Gram keeps; else gram.

    Args:
      x: floating (or integer), one text embedding a row; NumPy (memory-mapped too) or JAX.
      has_text: False for items that take no part; all take part by default. Their rows are not looked at.
        With `normalize_rows` a row of zeros has no direction: it counts as an item without text.
      normalize_rows: scale each row to unit length first.
      center: subtract the mean row.
      rtol: singular values below `rtol` times the largest are dropped.
      max_rank: keep at most this many components; 0 keeps all.
      method: "auto", "exact" or "gram".

    Returns:
      A `Spectrum` of NumPy arrays.

    Raises:
      InputError: `x` is not a matrix of numbers, NaN or inf (the rows are named), fewer than two items
        with text, all rows alike, or an option out of range.
    """
    if method not in METHODS:
        raise InputError(f"Decomposition method must be one of {', '.join(METHODS)}, got {method!r}.")
    if not 0 <= rtol < 1 or max_rank < 0:
        raise InputError(f"rtol must lie in [0, 1) and max_rank be at least 0, got {rtol} and {max_rank}.")
    rows = _Rows.survey(_matrix(x), has_text, normalize_rows=normalize_rows)
    if len(rows) < 2:
        raise InputError(f"A spectrum needs at least two items with text, got {len(rows)} of {rows.x.shape[0]} items.")
    if center:
        rows = dataclasses.replace(rows, mean=rows.average())
    n, m = rows.shape
    if method == "auto":
        cheap = max(n, m) * min(n, m) ** 2 <= _EXACT_COST
        method = "exact" if cheap or rtol < GRAM_FLOOR else "gram"
    # What centring leaves of equal rows is rounding, of this size.
    noise = np.finfo(np.float64).eps * max(n, m) * rows.energy**0.5
    rtol = max(rtol, GRAM_FLOOR) if method == "gram" else rtol
    solve = _exact if method == "exact" else _gram_of_columns if n >= m else _gram_of_rows
    coordinates, singular, basis = solve(rows, rtol=rtol, noise=noise, max_rank=max_rank)
    sign = _signs(basis)
    coordinates *= sign.astype(np.float32)
    if n == rows.x.shape[0]:
        u = coordinates
    else:
        u = np.zeros((rows.x.shape[0], coordinates.shape[1]), np.float32)
        u[rows.index] = coordinates
    return Spectrum(
        u=u,
        sigma=(singular / singular[0]).astype(np.float32),
        basis=basis * sign,
        mean=rows.mean,
        scale=np.asarray(singular[0], np.float64),
        count=np.asarray(n, np.int64),
    )


def project(
    spectrum: Spectrum,
    x: Float[Array, "n m"],
    has_text: Bool[Array, "n"] | None = None,
    *,
    normalize_rows: bool = True,
) -> Float[np.ndarray, "n r"]:
    """Spectral coordinates of new items, without a new decomposition: u = sqrt(n) (x - mean) V / S.

    An item that took part gets the coordinates that it has in `spectrum.u`, to float32 rounding.

    Args:
      spectrum: what `decompose` gave.
      x: text embeddings of the new items, NumPy or JAX.
      has_text: False for items whose coordinates shall be zero; none by default.
      normalize_rows: as it was in `decompose`; a row of zeros then has zero coordinates.

    Returns:
      float32 [n, r].

    Raises:
      InputError: another dimension than the spectrum's; NaN or inf (the rows are named).
    """
    matrix = _matrix(x)
    if matrix.shape[1] != spectrum.basis.shape[0]:
        raise InputError(
            f"New text embeddings have dimension {matrix.shape[1]}, but the spectrum was made from "
            f"dimension {spectrum.basis.shape[0]}; encode them with the same text encoder."
        )
    rows = _Rows.survey(matrix, has_text, normalize_rows=normalize_rows)
    rows = dataclasses.replace(rows, mean=np.asarray(spectrum.mean, np.float64))
    basis = np.asarray(spectrum.basis, np.float64)
    singular = np.asarray(spectrum.sigma, np.float64) * float(spectrum.scale)
    weights = float(spectrum.count) ** 0.5 / singular
    u = np.zeros((matrix.shape[0], spectrum.rank), np.float32)
    for where, chunk in rows.chunks():
        u[rows.index[where]] = (chunk @ basis) * weights
    return u


def effective_rank(singular_values: Float[Array, "r"]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    r equal values give r, one value among zeros gives 1: how many dimensions carry the matrix.

    Args:
      singular_values: non-negative, any order, at least one positive.

    Raises:
      InputError: a negative, NaN or infinite value, or no positive one.
    """
    values = np.asarray(singular_values, np.float64).ravel()
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise InputError("Singular values must be finite and non-negative, and one of them positive.")
    share = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _matrix(x: Array) -> np.ndarray:
    """`x` as a NumPy matrix, without a copy where it is one (memory-mapped or not)."""
    matrix = np.asarray(x)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"Text embeddings must be a matrix [items, dimension], got shape {matrix.shape}.")
    if not (jnp.issubdtype(matrix.dtype, jnp.floating) or jnp.issubdtype(matrix.dtype, jnp.integer)):
        raise InputError(f"Text embeddings must be floating point, got dtype {matrix.dtype}.")
    return matrix


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows that take part, read a chunk at a time: float64, scaled, centred."""

    x: np.ndarray
    index: np.ndarray  # int64 [n], the rows of x that take part
    norms: np.ndarray | None  # float64 [n], what the rows are divided by
    mean: np.ndarray  # float64 [m]
    energy: float  # sum of squares of the scaled, uncentred rows

    @classmethod
    def survey(cls, x: np.ndarray, has_text: Array | None, *, normalize_rows: bool) -> _Rows:
        """One pass: the norm of each row, which also tells NaN, inf and zero rows."""
        if has_text is not None and np.shape(has_text) != (x.shape[0],):
            raise InputError(f"has_text must have one entry per item, {x.shape[0]}, got shape {np.shape(has_text)}.")
        index = np.arange(x.shape[0]) if has_text is None else np.flatnonzero(np.asarray(has_text, bool))
        every = cls(x, index, None, np.zeros(x.shape[1]), 0.0)
        norms = np.zeros(len(index))
        with np.errstate(over="ignore", invalid="ignore"):
            for where, chunk in every.chunks():
                norms[where] = np.sqrt(np.einsum("ij,ij->i", chunk, chunk))
        bad = index[~np.isfinite(norms)]
        if len(bad):
            raise InputError(
                f"Text embeddings hold NaN or inf in {len(bad)} of {x.shape[0]} rows, the first: "
                f"{', '.join(map(str, bad[:3]))} (counted from 0); every number must be finite."
            )
        if not normalize_rows:
            return dataclasses.replace(every, energy=float(norms @ norms))
        return cls(x, index[norms > 0], norms[norms > 0], every.mean, float(np.count_nonzero(norms)))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.x.shape[1]

    def average(self) -> np.ndarray:
        total = np.zeros(self.x.shape[1])
        for _, chunk in self.chunks():
            total += chunk.sum(axis=0)
        return total / len(self)

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of whole rows: (which of the n rows, float64 [rows, m])."""
        step = max(1, _CHUNK_BYTES // (8 * self.x.shape[1]))
        everything = len(self.index) == self.x.shape[0]  # then a slice reads less than a list of rows
        for start in range(0, len(self.index), step):
            where = slice(start, min(start + step, len(self.index)))
            chunk = self.x[where if everything else self.index[where]].astype(np.float64)
            if self.norms is not None:
                chunk /= self.norms[where, None]
            chunk -= self.mean
            yield where, chunk

    def column_chunks(self) -> Iterator[np.ndarray]:
        """Blocks of whole columns, float64 [n, columns]: for fewer items than dimensions."""
        step = max(1, _CHUNK_BYTES // (8 * len(self.index)))
        for start in range(0, self.x.shape[1], step):
            where = slice(start, start + step)
            chunk = self.x[self.index, where].astype(np.float64)
            if self.norms is not None:
                chunk /= self.norms[:, None]
            chunk -= self.mean[where]
            yield chunk


_Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # float32 sqrt(n) U [n, r], float64 S [r], float64 V [m, r]


def _exact(rows: _Rows, *, rtol: float, noise: float, max_rank: int) -> _Parts:
    dense = np.empty(rows.shape)
    for where, chunk in rows.chunks():
        dense[where] = chunk
    u, singular, vt = np.linalg.svd(dense, full_matrices=False)
    r = _rank(singular, rtol=rtol, noise=noise, max_rank=max_rank)
    return (u[:, :r] * len(rows) ** 0.5).astype(np.float32), singular[:r], vt[:r].T.copy()


def _gram_of_columns(rows: _Rows, *, rtol: float, noise: float, max_rank: int) -> _Parts:
    """V from X^T X, then U and S from the projected rows; n >= m."""
    n, m = rows.shape
    gram = np.zeros((m, m))
    for _, chunk in rows.chunks():
        gram += chunk.T @ chunk
    roots, basis = _leading(gram, rtol=rtol, noise=noise, max_rank=max_rank)
    u = np.empty((n, len(roots)), np.float32)
    squares = np.zeros(len(roots))
    for where, chunk in rows.chunks():
        projected = (chunk @ basis) / roots
        squares += np.einsum("ij,ij->j", projected, projected)
        u[where] = projected
    correction = np.sqrt(squares)  # near 1: the column norms against the roots of the eigenvalues
    u *= (n**0.5 / correction).astype(np.float32)
    return _in_order(u, roots * correction, basis, rtol=rtol, noise=noise, max_rank=max_rank)


def _gram_of_rows(rows: _Rows, *, rtol: float, noise: float, max_rank: int) -> _Parts:
    """U from X X^T, then V and S from X^T U; n < m."""
    n, m = rows.shape
    gram = np.zeros((n, n))
    for columns in rows.column_chunks():
        gram += columns @ columns.T
    roots, left = _leading(gram, rtol=rtol, noise=noise, max_rank=max_rank)
    basis = np.zeros((m, len(roots)))
    for where, chunk in rows.chunks():
        basis += chunk.T @ left[where]
    singular = np.linalg.norm(basis, axis=0)
    u = (left * n**0.5).astype(np.float32)
    return _in_order(u, singular, basis / singular, rtol=rtol, noise=noise, max_rank=max_rank)


def _leading(gram: np.ndarray, *, rtol: float, noise: float, max_rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Roots of the leading eigenvalues, largest first, and their eigenvectors; a margin is kept for `_in_order`."""
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values[::-1], 0))
    r = _rank(roots, rtol=rtol / 2, noise=noise, max_rank=max_rank)
    return roots[:r], np.ascontiguousarray(vectors[:, ::-1][:, :r])


def _in_order(
    u: np.ndarray, singular: np.ndarray, basis: np.ndarray, *, rtol: float, noise: float, max_rank: int
) -> _Parts:
    """Sorts by the refined singular values, which may exchange near-equal ones, and drops the margin."""
    order = np.argsort(-singular, kind="stable")
    order = order[: _rank(singular[order], rtol=rtol, noise=noise, max_rank=max_rank)]
    if len(order) == len(singular) and (np.diff(order) == 1).all():
        return u, singular, basis
    return np.ascontiguousarray(u[:, order]), singular[order], np.ascontiguousarray(basis[:, order])


def _rank(singular: np.ndarray, *, rtol: float, noise: float, max_rank: int) -> int:
    """How many of the descending singular values are kept."""
    if singular[0] <= noise:
        raise InputError(
            "Text embeddings have no spectrum: all rows with text are the same. Give embeddings that tell items apart."
        )
    r = int(np.count_nonzero(singular >= max(rtol * singular[0], noise)))
    return min(r, max_rank) if max_rank else r


def _signs(basis: np.ndarray) -> np.ndarray:
    """+1 or -1 per column, so that its largest-magnitude entry becomes positive."""
    size = np.abs(basis)
    # Rounding must not decide between entries of equal magnitude: the first of them does.
    first = np.argmax(size >= (1 - 1e-6) * size.max(axis=0), axis=0)
    return np.where(basis[first, np.arange(basis.shape[1])] < 0, -1.0, 1.0)
