"""Matrices in .npy files larger than memory: written row after row, checksummed on the way, rewritten in place.

bfloat16 has no name in the .npy format: its bits are stored as uint16, and whoever opens the file must know.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from spectran_jax.errors import InputError, RunError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_REWRITE_BYTES = 16 * 2**20


class ArrayWriter:
    """Writes a .npy file from consecutive blocks of its rows; its checksum costs no second reading.

    A context manager: the file is complete, and `sha256` is set, when the block ends well.

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to.
      ValueError: the blocks do not add up to `shape`.
    """

    sha256: str
    """Of the array's bytes in C order, 64 hex digits; shape and dtype are not part of it."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic]) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._digest = hashlib.sha256()
        self._written = 0
        header = _header(shape, self.dtype)
        with write_errors(path.parent):
            self._file = path.open("wb")
            self._file.write(header)

    def write(self, rows: np.ndarray) -> None:
        """Appends rows, converted to the dtype of the file."""
        data = _bytes(np.asarray(rows, self.dtype))
        self._digest.update(data)
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
        if self._written != int(np.prod(self.shape)) * self.dtype.itemsize:
            raise ValueError(
                f"{self.path}: wrote {self._written} bytes, which is not an array of shape {self.shape} and dtype "
                f"{self.dtype}."
            )
        self.sha256 = self._digest.hexdigest()


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
      SHA-256 of the new array's bytes.
    """
    old = open_array(path, dtype)
    rows, header = len(old), _header((len(old), columns), into)
    if columns * into.itemsize > old.shape[1] * old.itemsize:
        raise ValueError(f"{path}: rows of {columns} {into} do not fit in place of {old.shape[1]} {dtype}.")
    step = max(1, _REWRITE_BYTES // (old.shape[1] * old.itemsize))
    digest = hashlib.sha256()
    with write_errors(path.parent), path.open("r+b") as file:
        file.seek(len(header))  # never longer than the old header, as no number in it is
        for start in range(0, rows, step):
            # Read before anything behind it is written; what is written ends where the next block begins, or before.
            data = _bytes(np.asarray(change(np.array(old[start : start + step])), into))
            digest.update(data)
            file.write(data)
        file.truncate()
        file.seek(0)
        file.write(header)
    return digest.hexdigest()


def open_array(path: Path, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """A read-only memory-map of a .npy file; never unpickles. `dtype` bfloat16 gives stored bits their meaning back.

    Raises:
      ValueError, OSError, EOFError: not a .npy file, truncated, or of Python objects.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(BFLOAT16) if dtype == BFLOAT16 else array


@contextlib.contextmanager
def write_errors(place: Path) -> Iterator[None]:
    """Turns a failure to write into a message for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"The disk is full: {place} could not be written. Free some space, or choose another --data_dir."
            ) from error
        reason = error.strerror or str(error)
        raise InputError(f"{place} can't be written ({reason}); choose another folder with --data_dir.") from error


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    stored = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
    buffer = io.BytesIO()
    entries = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, entries)
    return buffer.getvalue()


def _bytes(array: np.ndarray) -> Any:
    """The bytes in C order, without a copy where they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
