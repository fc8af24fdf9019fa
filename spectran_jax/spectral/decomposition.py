"""Decompose the text embeddings once, project new items for ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from spectran_jax import processes
from spectran_jax.errors import InputError
from spectran_jax.npy import open_array
from spectran_jax.spectral import coordinates, randomized, routes, sharded_route
from spectran_jax.spectral.coordinates import Block
from spectran_jax.spectral.routes import Options, Solution
from spectran_jax.spectral.rows import Survey, as_mask, as_matrix
from spectran_jax.spectral.spectrum import Spectrum
from spectran_jax.spectral.storage import DTYPES
from spectran_jax.writing import write_errors

Array = jax.Array | np.ndarray

_BLOCK = 1 << 14
"""Items whose coordinates are handed on at once, where U is in memory."""


def decompose(
    x: Float[Array, "N m"],
    has_text: Bool[Array, "N"] | None = None,
    *,
    normalize_rows: bool = True,
    center: bool = True,
    rtol: float = 1e-4,
    max_rank: int = 0,
    method: str = "auto",
    dtype: str = "float32",
    precision: str = "float64",
) -> Spectrum:
    """The spectrum of text embeddings: thin SVD of the centred rows.

    The same `x` always gives the same basis: the largest-magnitude entry of each basis column is made
    positive, the lowest index deciding between entries that are equal to rounding. (Components whose singular
    values coincide span a space in which any basis is as good; there the solver chooses.)

    Routes:
      exact: LAPACK's SVD of the float64 matrix. Keeps every singular value down to about 1e-15 of the
        largest. Holds three float64 matrices of the size of `x`; time N m min(N, m) with a large constant.
      gram: eigenvectors of X^T X (m x m), or of X X^T where there are fewer items than dimensions, summed over
        chunks in float64. Time is linear in N: two passes over `x`, one for norms, mean and X^T X, one for the
        coordinates. Beside the result only a chunk (64 MiB) and a few square matrices are held: a memory-mapped `x`
        is never copied whole. Singular values are then taken as
        column norms of the projected rows, not as roots of eigenvalues: at condition number 1e6 they are exact to
        1e-9, the roots to 5e-6 only. Components below 1e-6 of the largest can't be told from rounding: a
        smaller `rtol` acts as 1e-6. With `precision` float32 it runs on the accelerators, which may have no float64,
        and the bound is 1e-3.
      randomized: the `max_rank` leading components only, and those near the last only approximately: see
        `randomized.randomized` for the bound. For dimensions far above `max_rank`.
      auto: exact where that takes a fraction of a second, or where `rtol` asks for more than Gram keeps; else gram.

    Args:
      x: floating (or integer), one text embedding a row; NumPy (memory-mapped too) or JAX.
      has_text: False for items that take no part; all take part by default. What their rows hold does not matter.
        With `normalize_rows` a row of zeros has no direction: it counts as an item without text.
      normalize_rows: scale each row to unit length first.
      center: subtract the mean row.
      rtol: singular values below `rtol` times the largest are dropped.
      max_rank: keep at most this many components; 0 keeps all.
      method: "auto", "exact", "gram" or "randomized".
      dtype: of `u`: "float32", "bfloat16" or "int8"; `storage` says what each costs.
      precision: "float64", or "float32" for the Gram route with at least as many items as dimensions; the other
        routes are float64.

    Returns:
      A `Spectrum` of NumPy arrays.

    Raises:
      InputError: `x` is not a matrix of numbers, NaN or inf (the rows are named), fewer than two items
        with text, all rows alike, an option out of range, or int8 and a component with too heavy a tail.
    """
    options = Options(normalize_rows, center, rtol, max_rank, method, dtype, precision)
    return _decompose(x, has_text, options, None)[0]


def decompose_to(
    path: Path, x: Float[Array, "N m"], has_text: Bool[Array, "N"] | None = None, **options: Any
) -> tuple[Spectrum, str]:
    """`decompose` with `u` written to a .npy file as it is computed: it is never in memory as a whole.

    On the way the file may hold other numbers: give it its final name, or let others see it, only afterwards. It
    takes N r numbers of 4 bytes (2 for bfloat16); int8 shrinks to 1 byte at the end.

    Args:
      path: the file; bfloat16 is stored as the bits of uint16 (`npy.open_array` gives them their meaning back).
      x: as in `decompose`.
      has_text: as in `decompose`.
      **options: as in `decompose`.

    Returns:
      The `Spectrum`, its `u` memory-mapped, and the SHA-256 of the bytes of `u`.

    Raises:
      InputError: as `decompose`; or the file can't be written.
      RunError: the disk is full.
    """
    return _decompose(x, has_text, Options(**options), path)


def decompose_shared(
    path: Path, x: Float[Array, "N m"], has_text: Bool[Array, "N"] | None = None, **options: Any
) -> tuple[Spectrum, str]:
    """`decompose_to` by all processes, each of which reads and writes its own rows; collective.

    What would be the exact route, or has fewer items with text than dimensions, is left to process 0 alone: it is
    small, or must be seen whole. The rest is the Gram route over the devices of all processes: one reduction of the
    m x m sums, the same eigenvectors for everybody.

    Args:
      path: the file, in a folder that all processes share; they write drafts of their own beside it.
      x: all rows, memory-mapped: a process reads those that are its own (`processes.rows_of`).
      has_text: as in `decompose`, of all rows.
      **options: as in `decompose`.

    Returns:
      As `decompose_to`, on every process; to rounding the `Spectrum` that one process gives, up to signs of
      components with two largest entries.

    Raises:
      InputError: as `decompose_to`, the same on every process; or the randomised route, which draws a number for each
        row in turn.
      RunError: the disk is full.
    """
    matrix = as_matrix(x)
    part = as_mask(has_text, len(matrix))
    n, m = int(np.count_nonzero(part)), matrix.shape[1]
    chosen = Options(**options).chosen(n, m)
    if chosen.method == "randomized":
        raise InputError(
            f"--decomposition=randomized runs on one process only, and there are {jax.process_count()}: take "
            "--decomposition=gram, whose cost they share."
        )
    if chosen.method == "exact" or n < m:
        return _by_first(path, matrix, part, chosen)
    rows = processes.rows_of(len(matrix))
    mesh = sharded_route.mesh_for(chosen.precision, shared=True)
    solution = sharded_route.gram_over_mesh(
        matrix[rows], part[rows], chosen, mesh, first_row=rows.start, items=len(matrix)
    )
    kept = coordinates.keep_shared(
        _blocks(solution),
        rows=rows,
        shape=(len(matrix), len(solution.singular)),
        count=solution.rows.count,
        dtype=chosen.dtype,
        settle=lambda rms: _settle(solution, rms, chosen),
        out=path,
    )
    return _spectrum(solution, kept), kept.sha256


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
    matrix = as_matrix(x)
    part = as_mask(has_text, len(matrix))
    if matrix.shape[1] != spectrum.basis.shape[0]:
        raise InputError(
            f"New text embeddings have dimension {matrix.shape[1]}, but the spectrum was made from "
            f"dimension {spectrum.basis.shape[0]}; encode them with the same text encoder."
        )
    singular = np.asarray(spectrum.sigma, np.float64) * float(spectrum.scale)
    weights = np.asarray(spectrum.basis, np.float64) * (float(spectrum.count) ** 0.5 / singular)
    survey = Survey(matrix, part, normalize=normalize_rows, shift=np.asarray(spectrum.mean, np.float64))
    u = np.zeros((len(matrix), spectrum.rank), np.float32)
    for where, present, chunk in survey.chunks():
        u[where][present] = chunk @ weights
    survey.rows(center=False)  # refuses NaN and inf
    return u


def _decompose(x: Array, has_text: Array | None, options: Options, out: Path | None) -> tuple[Spectrum, str]:
    matrix = as_matrix(x)
    part = as_mask(has_text, len(matrix))
    n, m = int(np.count_nonzero(part)), matrix.shape[1]
    options = options.chosen(n, m)
    if options.method == "exact":
        solution = routes.exact(matrix, part, options)
    elif options.method == "randomized":
        solution = randomized.randomized(matrix, part, options)
    elif options.precision == "float32":
        solution = sharded_route.gram_over_mesh(
            matrix, part, options, sharded_route.mesh_for(options.precision, shared=False)
        )
    else:
        solution = (routes.gram_of_columns if n >= m else routes.gram_of_rows)(matrix, part, options)
    kept = coordinates.keep(
        _blocks(solution),
        shape=(len(matrix), len(solution.singular)),
        count=solution.rows.count,
        dtype=options.dtype,
        settle=lambda rms: _settle(solution, rms, options),
        out=out,
    )
    return _spectrum(solution, kept), kept.sha256


def _spectrum(solution: Solution, kept: coordinates.Kept) -> Spectrum:
    singular = _refined(solution, kept.rms)[kept.columns]
    basis = solution.basis[:, kept.columns]
    return Spectrum(
        u=kept.u,
        sigma=(singular / singular[0]).astype(np.float32),
        basis=np.ascontiguousarray(basis * routes.signs(basis)),
        mean=solution.rows.mean,
        scale=np.asarray(singular[0], np.float64),
        count=np.asarray(solution.rows.count, np.int64),
        u_scale=kept.u_scale,
    )


def _by_first(path: Path, matrix: np.ndarray, part: np.ndarray, options: Options) -> tuple[Spectrum, str]:
    """Process 0 decomposes; the others read what it found beside the coordinates."""
    beside = path.with_name(f"{path.name}.rest.npz")

    def run() -> None:
        found, sha256 = _decompose(matrix, part, options, path)
        rest = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "u"}
        with write_errors(beside.parent):
            np.savez(beside, sha256=sha256, **{name: value for name, value in rest.items() if value is not None})

    processes.by_first(run)

    def read() -> tuple[Spectrum, str]:
        with np.load(beside) as rest:
            fields = {name: rest[name] for name in rest.files}
        sha256 = str(fields.pop("sha256"))
        return Spectrum(u=open_array(path, DTYPES[options.dtype]), **fields), sha256

    result = processes.together(read)
    processes.by_first(beside.unlink)
    return result


def _blocks(solution: Solution) -> Iterator[Block]:
    """The coordinates sqrt(n) U of consecutive items, signs fixed."""
    rows, root, sign = solution.rows, solution.rows.count**0.5, routes.signs(solution.basis)
    if solution.project is not None:
        yield from solution.project(solution.basis * (root * sign / solution.singular))
    elif solution.left is None:
        weights = solution.basis * (root * sign / solution.singular)
        buffer = np.empty((0, len(sign)))
        for where, part, chunk in rows.chunks():
            if len(buffer) < len(chunk):
                buffer = np.empty((len(chunk), len(sign)))
            yield where, part, np.matmul(chunk, weights, out=buffer[: len(chunk)])
    else:
        # U is in memory, over the few items with text; the zeros of the others need not be.
        weights, done = root * sign, 0
        for start in range(0, len(rows.part), _BLOCK):
            part = rows.part[start : start + _BLOCK]
            texts = int(np.count_nonzero(part))
            yield slice(start, start + len(part)), part, solution.left[done : done + texts] * weights
            done += texts


def _refined(solution: Solution, rms: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """Singular values as norms of the projected rows, where they were roots of eigenvalues."""
    return solution.singular * rms if solution.left is None else solution.singular


def _settle(
    solution: Solution, rms: Float[np.ndarray, "r"], options: Options
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Which components stay, in which order, and what makes their mean square 1 (see `coordinates.Settle`)."""
    singular = _refined(solution, rms)
    order = np.arange(len(singular))
    if (np.diff((singular / singular[0]).astype(np.float32)) > 0).any():
        # The refined values exchanged near-equal ones, by more than float32 shows.
        order = np.argsort(-singular, kind="stable")
    columns = order[: options.rank(singular[order], solution.rows.noise)]
    correction = rms[columns]
    lost = np.abs(correction - 1) <= coordinates.TOLERANCE[options.dtype]
    return columns, np.where(lost, 1.0, 1 / correction)
