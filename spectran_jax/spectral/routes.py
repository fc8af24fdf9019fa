"""Exact and Gram: the routes from rows to singular values and a basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float

from spectran_jax.config_checks import check_rank
from spectran_jax.errors import InputError
from spectran_jax.spectral.coordinates import Block
from spectran_jax.spectral.rows import Survey, SurveyedRows, provisional_mean, survey
from spectran_jax.spectral.storage import DTYPES

METHODS = ("auto", "exact", "gram", "randomized")
GRAM_FLOOR = 1e-6
"""Smallest singular value, relative to the largest, that sums of squares tell from rounding."""
GRAM_FLOORS = {"float64": GRAM_FLOOR, "float32": 1e-3}
"""The same by precision of the sums: its unit roundoff is about the square of it."""

EXACT_COST = 2e8
"""max(n, m) * min(n, m)**2 up to which `auto` affords the exact route: a fraction of a second."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `decompose`, checked."""

    normalize_rows: bool = True
    center: bool = True
    rtol: float = 1e-4
    max_rank: int = 0
    method: str = "auto"
    dtype: str = "float32"
    precision: str = "float64"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"Decomposition method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.dtype not in DTYPES:
            raise InputError(f"The spectrum's dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.precision not in GRAM_FLOORS:
            raise InputError(f"The precision must be one of {', '.join(GRAM_FLOORS)}, got {self.precision!r}.")
        if not 0 <= self.rtol < 1 or self.max_rank < 0:
            raise InputError(
                f"rtol must lie in [0, 1) and max_rank be at least 0, got {self.rtol} and {self.max_rank}."
            )
        check_rank(self.method, self.max_rank)

    def chosen(self, n: int, m: int) -> Options:
        """With the method that "auto" stands for, and the precision that it offers and `rtol` that it can keep."""
        method = self.method
        if method == "auto":
            cheap = max(n, m) * min(n, m) ** 2 <= EXACT_COST
            method = "exact" if cheap or self.rtol < GRAM_FLOOR else "gram"
        precision = self.precision if method == "gram" and n >= m else "float64"
        rtol = self.rtol if method == "exact" else max(self.rtol, GRAM_FLOORS[precision])
        return dataclasses.replace(self, method=method, rtol=rtol, precision=precision)

    def rank(self, singular: Float[np.ndarray, "k"], noise: float) -> int:
        """How many of the descending singular values are kept."""
        if singular[0] <= noise:
            close = ", or differ by less than float32 tells; take --decomposition_precision=float64"
            raise InputError(
                "The text has no spectrum: all items with text have the same embedding"
                f"{close if self.precision == 'float32' else ''}. Give --text_columns or --embeddings that tell items "
                "apart."
            )
        r = int(np.count_nonzero(singular >= max(self.rtol * singular[0], noise)))
        return min(r, self.max_rank) if self.max_rank else r


@dataclasses.dataclass(frozen=True)
class Solution:
    """A decomposition, all but the coordinates of the items."""

    rows: SurveyedRows
    singular: Float[np.ndarray, "r"]
    """float64, descending. Where `left` is None they are to be refined, as column norms of the projected rows."""
    basis: Float[np.ndarray, "m r"]
    """float64, signs not yet fixed."""
    left: Float[np.ndarray, "n r"] | None = None
    """float64, U, where the route gives it; else rows are projected on the basis."""
    project: Callable[[Float[np.ndarray, "m r"]], Iterator[Block]] | None = None
    """Coordinates of consecutive items from weights, where devices compute them; else the host does."""


def exact(x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options) -> Solution:
    """LAPACK's SVD."""
    rows = checked(survey(x, part, normalize=options.normalize_rows, center=options.center))
    dense, start = np.empty((rows.count, x.shape[1])), 0
    for _, _, chunk in rows.chunks():
        dense[start : start + len(chunk)] = chunk
        start += len(chunk)
    left, singular, right = np.linalg.svd(dense, full_matrices=False)
    r = options.rank(singular, rows.noise)
    return Solution(rows, singular[:r], right[:r].T.copy(), left[:, :r])


def gram_of_columns(x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options) -> Solution:
    """V from X^T X: one pass, with norms, mean and sums of squares together; for n >= m.

    The mean is known last, so it leaves the matrix afterwards: sum (x - mean)(x - mean)^T =
    sum (x - s)(x - s)^T - n (mean - s)(mean - s)^T for any s. With s = 0 and rows that share a strong direction, digits
    cancel; with s the mean of a sample, what is subtracted is a thousandth of what remains.
    """
    m = x.shape[1]
    shift = provisional_mean(x, part, normalize=options.normalize_rows) if options.center else np.zeros(m)
    first = Survey(x, part, normalize=options.normalize_rows, shift=shift)
    gram, product = np.zeros((m, m)), np.empty((m, m))
    for _, _, chunk in first.chunks():
        gram += np.matmul(chunk.T, chunk, out=product)
    rows = checked(first.rows(center=options.center))
    if options.center:
        off = rows.mean - shift
        gram -= rows.count * np.outer(off, off)
    roots, basis = leading(gram, rows.noise, options)
    return Solution(rows, roots, basis)


def gram_of_rows(x: np.ndarray, part: Bool[np.ndarray, "N"], options: Options) -> Solution:
    """U from X X^T, then V and S from X^T U; for n < m."""
    rows = checked(survey(x, part, normalize=options.normalize_rows, center=options.center))
    gram = np.zeros((rows.count, rows.count))
    for columns in rows.column_chunks():
        gram += columns @ columns.T
    roots, left = leading(gram, rows.noise, options)
    basis, start = np.zeros((x.shape[1], len(roots))), 0
    for _, _, chunk in rows.chunks():
        basis += chunk.T @ left[start : start + len(chunk)]
        start += len(chunk)
    singular = np.linalg.norm(basis, axis=0)
    order = np.argsort(-singular, kind="stable")
    order = order[: options.rank(singular[order], rows.noise)]
    return Solution(rows, singular[order], basis[:, order] / singular[order], left[:, order])


def checked(rows: SurveyedRows, items: int = 0) -> SurveyedRows:
    """Rows of which there are enough; `items` where `rows` are a part of them."""
    if rows.count < 2:
        items = items or len(rows.part)
        raise InputError(f"A spectrum needs at least two items with text, got {rows.count} of {items} items.")
    return rows


def leading(
    gram: Float[np.ndarray, "k k"], noise: float, options: Options
) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "k r"]]:
    """Roots of the leading eigenvalues, largest first, and their eigenvectors.

    Rounding moves each eigenvalue by up to about k eps times the largest. Roots that may lie above `rtol` once refined
    stay: far above 1e-6 those are the ones above it, so that no component is computed only to be dropped.
    """
    values, vectors = np.linalg.eigh(gram)
    return kept(values[::-1], vectors[:, ::-1], noise, options)


def kept(
    values: Float[np.ndarray, "k"], vectors: Float[np.ndarray, "k k"], noise: float, options: Options
) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "k r"]]:
    """`leading` of descending eigenvalues of a Gram matrix, summed in `options.precision`, and their eigenvectors."""
    values = np.maximum(values, 0)
    doubt = 4 * float(np.finfo(options.precision).eps) * len(values)
    rtol = np.sqrt(max(options.rtol**2 - doubt, options.rtol**2 / 4))
    r = dataclasses.replace(options, rtol=rtol).rank(np.sqrt(values), noise)
    return np.sqrt(values[:r]), np.ascontiguousarray(vectors[:, :r])


def signs(basis: Float[np.ndarray, "m r"]) -> Float[np.ndarray, "r"]:
    """+1 or -1 per column, so that its largest-magnitude entry becomes positive."""
    size = np.abs(basis)
    # Rounding must not decide between entries of equal magnitude: the first of them does.
    first = np.argmax(size >= (1 - 1e-6) * size.max(axis=0), axis=0)
    return np.where(basis[first, np.arange(basis.shape[1])] < 0, -1.0, 1.0)
