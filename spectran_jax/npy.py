"""Matrices in .npy files larger than memory: written row after row, checksummed on the way, rewritten in place.

bfloat16 has no name in the .npy format: its bits are stored as uint16, and whoever opens the file must know.
Several processes may write one file, each its own rows: see `allocate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from spectran_jax.errors import first_line
from spectran_jax.writing import write_errors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

BLOCK_ROWS = 4096
"""Rows that a checksum takes together, so that processes can share the work: see `RowDigests`."""

_REWRITE_BYTES = 16 * 2**20
_PAGE = 4096


class RowDigests:
    """SHA-256 of each `BLOCK_ROWS` consecutive rows, from their bytes in pieces of any size.

    A process that begins at a multiple of `BLOCK_ROWS` gets the same digests for its rows as one that reads them all;
    `combined` makes a checksum of the digests of all blocks.
    """

    def __init__(self, row_bytes: int) -> None:
        self._block, self._room = BLOCK_ROWS * row_bytes, BLOCK_ROWS * row_bytes
        self._open, self._done = hashlib.sha256(), bytearray()

    def update(self, data: memoryview) -> None:
        """Takes the next bytes."""
        while len(data):
            piece, data = data[: self._room], data[self._room :]
            self._open.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._done += self._open.digest()
                self._open, self._room = hashlib.sha256(), self._block

    def digests(self) -> bytes:
        """32 bytes a block, the last of which may have fewer rows."""
        return bytes(self._done) + (self._open.digest() if self._room < self._block else b"")


def combined(digests: bytes) -> str:
    """The checksum of an array from the digests of all its blocks of rows (`RowDigests`), 64 hex digits."""
    return hashlib.sha256(digests).hexdigest()


def row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one row; of the whole array where it is a scalar."""
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


class ArrayWriter:
    """Writes a .npy file from consecutive blocks of its rows; its checksum costs no second pass.

    A context manager: the file is complete, and `digests` is set, when the block ends well.

    Args:
      path: the file.
      shape: of the array.
      dtype: of the array; see the head of this file on bfloat16.
      rows: the rows that are written, in a file that `allocate` made; all, in a new file, by default.

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to.
      ValueError: the blocks do not add up to the rows.
    """

    digests: bytes
    """Of the rows that were written: see `RowDigests`."""

    def __init__(
        self, path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic], rows: slice | None = None
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        size = row_bytes(shape, self.dtype)
        self._digests, self._written = RowDigests(size), 0
        self._expected = size * ((shape[0] if shape else 1) if rows is None else rows.stop - rows.start)
        with write_errors(path.parent):
            if rows is None:
                self._file: Any = path.open("wb")
                self._file.write(_header(shape, self.dtype))
            else:
                self._file = path.open("r+b")
                self._file.seek(_PAGE + rows.start * size)

    @property
    def sha256(self) -> str:
        """Checksum of what was written, 64 hex digits; shape and dtype are not part of it."""
        return combined(self.digests)

    def write(self, rows: np.ndarray) -> None:
        """Appends rows, converted to the dtype of the file."""
        data = _bytes(np.asarray(rows, self.dtype))
        self._digests.update(data)
        with write_errors(self.path.parent):
            # A plain write reports a full disk; a memory-map would be killed by a bus error.
            self._written += self._file.write(data)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            return
        with write_errors(self.path.parent):
            self._file.close()
        if self._written != self._expected:
            raise ValueError(
                f"{self.path}: wrote {self._written} bytes where {self._expected} were due, which is not an array of "
                f"shape {self.shape} and dtype {self.dtype}."
            )
        self.digests = self._digests.digests()


def allocate(path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic]) -> None:
    """Makes a .npy file into which several processes write rows by `ArrayWriter(rows=...)`.

    Its rows begin on a page of their own: where processes begin at multiples of `BLOCK_ROWS`, no two of them write to
    one page, which a network file system would not bear.

    Raises:
      RunError, InputError: as `ArrayWriter`.
    """
    with write_errors(path.parent), path.open("wb") as file:
        file.write(_header(shape, np.dtype(dtype), _PAGE))
        file.truncate(_PAGE + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)


def rewrite(
    path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    *,
    dtype: np.dtype[Any],
    columns: int,
    into: np.dtype[Any],
) -> str:
    """Changes the rows of a matrix in its own file, from the first to the last: no second file, so no second space.

    The file is not a valid one until this returns: nobody else may know of it.

    Args:
      path: a .npy file of a matrix.
      change: gives the new rows of a block of old ones.
      dtype: of the matrix (see the head of this file on bfloat16).
      columns: of the new matrix.
      into: dtype of the new matrix; new rows must not be longer than old ones.

    Returns:
      The checksum of the new array's bytes (see `combined`).
    """
    old = open_array(path, dtype)
    rows, header = len(old), _header((len(old), columns), into)
    if columns * into.itemsize > old.shape[1] * old.itemsize:
        raise ValueError(f"{path}: rows of {columns} {into} do not fit in place of {old.shape[1]} {dtype}.")
    step = max(1, _REWRITE_BYTES // (old.shape[1] * old.itemsize))
    digests = RowDigests(columns * into.itemsize)
    with write_errors(path.parent), path.open("r+b") as file:
        file.seek(len(header))  # never longer than the old header, as no number in it is
        for start in range(0, rows, step):
            # Read before anything behind it is written; what is written ends where the next block begins, or before.
            data = _bytes(np.asarray(change(np.array(old[start : start + step])), into))
            digests.update(data)
            file.write(data)
        file.truncate()
        file.seek(0)
        file.write(header)
    return combined(digests.digests())


def open_array(path: Path, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """A read-only memory-map of a .npy file; never unpickles. `dtype` bfloat16 gives stored bits their meaning back.

    Raises:
      ValueError, OSError, EOFError: not a .npy file, truncated, or of Python objects.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, OverflowError) as error:  # what NumPy lets through of a bad header
        raise ValueError(f"its header is damaged ({first_line(error)})") from error
    return array.view(BFLOAT16) if dtype == BFLOAT16 else array


def _header(shape: tuple[int, ...], dtype: np.dtype[Any], size: int = 0) -> bytes:
    """The head of a .npy file, version 1.0, filled up with blanks to at least `size` bytes."""
    stored = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
    buffer = io.BytesIO()
    entries = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, entries)
    header = buffer.getvalue()
    if len(header) < size:
        # Magic and version, the length of what follows, that itself, ended by a line feed.
        header = header[:8] + (size - 10).to_bytes(2, "little") + header[10:-1].ljust(size - 11) + b"\n"
    return header


def _bytes(array: np.ndarray) -> Any:
    """The bytes in C order, without a copy where they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
