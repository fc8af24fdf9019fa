"""The rows of a matrix that may be larger than memory, read a chunk at a time: float64, scaled, centred."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from spectran_jax.errors import InputError

Array = jax.Array | np.ndarray

CHUNK_BYTES = 64 * 2**20
"""Of float64 rows held at a time: enough for BLAS to run at full speed."""

_PIECE_BYTES = 2**19  # of float64 rows converted and scaled at once: they stay in the cache meanwhile
_SAMPLE = 1024  # rows that the provisional mean is taken from, at least
_THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def as_matrix(x: Array) -> np.ndarray:
    """`x` as a NumPy matrix, without a copy where it is one (memory-mapped or not)."""
    matrix = np.asarray(x)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"Text embeddings must be a matrix [items, dimension], got shape {matrix.shape}.")
    if not (jnp.issubdtype(matrix.dtype, jnp.floating) or jnp.issubdtype(matrix.dtype, jnp.integer)):
        raise InputError(f"Text embeddings must be floating point, got dtype {matrix.dtype}.")
    return matrix


def as_mask(has_text: Array | None, items: int) -> Bool[np.ndarray, "N"]:
    """`has_text` as a NumPy mask; all True where it is None."""
    if has_text is None:
        return np.ones(items, bool)
    if np.shape(has_text) != (items,):
        raise InputError(f"has_text must have one entry per item, {items}, got shape {np.shape(has_text)}.")
    return np.asarray(has_text, bool)


Chunk = tuple[slice, Bool[np.ndarray, "rows"], Float[np.ndarray, "part m"]]
"""Consecutive rows, which of them take part, and those as float64 in a buffer that the next chunk reuses."""


@dataclasses.dataclass(frozen=True)
class SurveyedRows:
    """The rows that take part, as the decomposition sees them: (row * factor) - mean."""

    x: np.ndarray
    part: Bool[np.ndarray, "N"]
    factor: Float[np.ndarray, "N"] | None
    """float64, what each row is multiplied by: 1 / its norm; None where rows are not scaled."""
    mean: Float[np.ndarray, "m"]
    energy: float
    """Sum of squares of the scaled, uncentred rows."""
    count: int
    """n, how many take part."""

    @property
    def noise(self) -> float:
        """What centring leaves of equal rows is rounding, with singular values of this size."""
        return float(np.finfo(np.float64).eps * max(self.count, self.x.shape[1]) * self.energy**0.5)

    def chunks(self) -> Iterator[Chunk]:
        """All rows from first to last; one pass over the matrix."""
        for where, part, out, fill in _chunks(self.x, self.part):
            factor = None if self.factor is None else self.factor[where][part, None]

            def finish(piece: slice, out: np.ndarray = out, factor: np.ndarray | None = factor) -> None:
                if factor is not None:
                    out[piece] *= factor[piece]
                out[piece] -= self.mean

            fill(finish)
            yield where, part, out

    def column_chunks(self) -> Iterator[Float[np.ndarray, "n columns"]]:
        """Blocks of whole columns: for fewer items than dimensions."""
        index = np.flatnonzero(self.part)
        factor = None if self.factor is None else self.factor[index, None]
        step = max(1, CHUNK_BYTES // (8 * len(index)))
        for start in range(0, self.x.shape[1], step):
            where = slice(start, start + step)
            block = self.x[index, where].astype(np.float64)
            if factor is not None:
                block *= factor
            block -= self.mean[where]
            yield block


class Survey:
    """The first pass: yields chunks like `SurveyedRows.chunks`, and learns from them what `SurveyedRows` needs.

    Norms and the mean are known only when the pass is over, so that chunks are scaled, but centred on `shift`.
    Rows that hold NaN or inf, or have no direction, are zero in the chunks.

    Args:
      x: the matrix.
      part: rows to look at.
      normalize: scale rows to unit length; a row of zeros then takes no part.
      shift: what is subtracted from each row; nothing by default.
    """

    def __init__(
        self,
        x: np.ndarray,
        part: Bool[np.ndarray, "N"],
        *,
        normalize: bool,
        shift: Float[np.ndarray, "m"] | None = None,
    ) -> None:
        self.x, self.part, self.normalize = x, part, normalize
        self.shift = np.zeros(x.shape[1]) if shift is None else shift
        self._norms = np.zeros(x.shape[0])
        self._total = np.zeros(x.shape[1])

    def chunks(self) -> Iterator[Chunk]:
        """All rows from first to last; one pass over the matrix."""
        for where, part, out, fill in _chunks(self.x, self.part):
            norms = np.zeros(len(out))
            sums = np.zeros((-(-len(out) // _piece_rows(self.x)), self.x.shape[1]))
            # In the order of the rows, whichever thread comes first.
            fill(functools.partial(self._finish, out, norms, sums))
            self._norms[np.arange(where.start, where.stop)[part]] = norms
            self._total += sums.sum(axis=0)
            yield where, part, out

    def _finish(self, out: np.ndarray, norms: np.ndarray, sums: np.ndarray, piece: slice) -> None:
        block = out[piece]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            norm = np.sqrt(np.einsum("ij,ij->i", block, block))
            if self.normalize:
                block *= (1 / norm)[:, None]
        block -= self.shift
        none = ~np.isfinite(norm) | (self.normalize & (norm == 0))
        if none.any():
            block[none] = 0
        norms[piece] = norm
        sums[piece.start // _piece_rows(self.x)] = block.sum(axis=0)

    def rows(self, *, center: bool) -> SurveyedRows:
        """What was learnt, when all chunks are read.

        Raises:
          InputError: NaN or inf (the rows are named).
        """
        bad = np.flatnonzero(~np.isfinite(self._norms))
        if len(bad):
            raise not_finite(len(bad), self.x.shape[0], bad[:3].tolist())
        if self.normalize:
            part = self.part & (self._norms > 0)
            factor = np.divide(1.0, self._norms, out=np.zeros_like(self._norms), where=part)
            count = int(np.count_nonzero(part))
            energy = float(count)
        else:
            part, factor, count = self.part, None, int(np.count_nonzero(self.part))
            energy = float(self._norms @ self._norms)
        mean = self.shift + self._total / max(count, 1) if center else np.zeros(self.x.shape[1])
        return SurveyedRows(self.x, part, factor, mean, energy, count)


def survey(x: np.ndarray, part: Bool[np.ndarray, "N"], *, normalize: bool, center: bool) -> SurveyedRows:
    """`SurveyedRows` by a pass that does nothing else."""
    first = Survey(x, part, normalize=normalize)
    for _ in first.chunks():
        pass
    return first.rows(center=center)


def not_finite(count: int, rows: int, first: list[int]) -> InputError:
    """The error for rows that hold NaN or inf."""
    return InputError(
        f"Text embeddings hold NaN or inf in {count} of {rows} rows, the first: "
        f"{', '.join(map(str, first))} (counted from 0); every number must be finite."
    )


def provisional_mean(x: np.ndarray, part: Bool[np.ndarray, "N"], *, normalize: bool) -> Float[np.ndarray, "m"]:
    """The mean of 1,024 to 2,047 rows, evenly spread: near enough to the mean for sums of squares not to cancel."""
    total, count = provisional_sum(x, part, normalize=normalize)
    return total / max(count, 1)


def provisional_sum(
    x: np.ndarray, part: Bool[np.ndarray, "N"], *, normalize: bool
) -> tuple[Float[np.ndarray, "m"], int]:
    """The sum of the rows of `provisional_mean`, and their number."""
    total, count = np.zeros(x.shape[1]), 0
    index = np.flatnonzero(part)
    if not len(index):
        return total, count
    index = index[:: max(1, len(index) // _SAMPLE)]
    first = Survey(x[index], np.ones(len(index), bool), normalize=normalize)
    for _, _, chunk in first.chunks():
        total += chunk.sum(axis=0)
        count += int(np.count_nonzero(chunk.any(axis=1)))
    return total, count


Fill = Callable[[Callable[[slice], None]], None]
"""Brings in the rows of a chunk, and calls a function on each piece of it while that is in the cache."""


def _chunks(
    x: np.ndarray, part: Bool[np.ndarray, "N"]
) -> Iterator[tuple[slice, Bool[np.ndarray, "rows"], np.ndarray, Fill]]:
    """Slices of rows, their mask, room for those that take part, and what fills it."""
    items, m = x.shape
    step = min(items, max(1, CHUNK_BYTES // (8 * m)))
    buffer = np.empty((step, m))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, items, step):
            where = slice(start, min(start + step, items))
            out = buffer[: np.count_nonzero(part[where])]
            yield where, part[where], out, functools.partial(_fill, pool, out, x[where], part[where])


def _fill(
    pool: ThreadPoolExecutor,
    out: np.ndarray,
    rows: np.ndarray,
    part: Bool[np.ndarray, "rows"],
    finish: Callable[[slice], None],
) -> None:
    """Copies the rows that take part into `out` as float64; conversion is no work for one core where BLAS has all."""
    if len(out) < len(rows):
        rows = rows[part]
    step = _piece_rows(rows)
    pieces = [slice(start, min(start + step, len(out))) for start in range(0, len(out), step)]

    def work(share: list[slice]) -> None:
        for piece in share:
            out[piece] = rows[piece]
            finish(piece)

    if len(pieces) < _THREADS * 4:
        work(pieces)
    else:
        list(pool.map(work, [pieces[i::_THREADS] for i in range(_THREADS)]))


def _piece_rows(x: np.ndarray) -> int:
    return max(1, _PIECE_BYTES // (8 * x.shape[1]))
