"""Checksums: of arrays, read in chunks, and of sequences of ids and texts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Shaped

from spectran_jax import npy

_CHUNK_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Scan:
    """What one pass over a matrix tells."""

    digests: bytes
    """Of the array's bytes in C order, 32 a block of rows: see `npy.RowDigests`."""
    finite: Bool[np.ndarray, "N"]
    """False for rows that hold NaN or inf."""
    narrow: Bool[np.ndarray, "N"]
    """False for rows that hold what float32 does not: float64 numbers beyond its range, NaN or inf."""
    nonzero: Bool[np.ndarray, "N"]
    """False for rows of zeros."""


def scan(matrix: Float[np.ndarray, "N m"]) -> Scan:
    """Reads a matrix once, in chunks of some MiB: checksum, finite rows, rows for float32, zero rows."""
    digests = npy.RowDigests(npy.row_bytes(matrix.shape, matrix.dtype))
    finite, narrow, nonzero = (np.empty(matrix.shape[0], bool) for _ in range(3))
    for where in row_chunks(matrix):
        chunk = np.ascontiguousarray(matrix[where])
        digests.update(chunk.reshape(-1).view(np.uint8).data)
        # Without the sign, IEEE numbers order like their bits: one maximum tells NaN, inf and zero, at a tenth of the
        # cost of asking each half-precision number.
        native = chunk.astype(chunk.dtype.newbyteorder("="), copy=False)
        bits = np.dtype(f"u{native.dtype.itemsize}")
        largest = (native.view(bits) & np.array(~np.array(-0.0, native.dtype).view(bits))).max(axis=1)
        finite[where] = largest < np.array(np.inf, native.dtype).view(bits)
        limit = min(np.finfo(np.float32).max, np.finfo(native.dtype).max, key=float)
        narrow[where] = largest <= np.array(limit, native.dtype).view(bits)
        nonzero[where] = largest > 0
    return Scan(digests.digests(), finite, narrow, nonzero)


def checksum(array: Shaped[np.ndarray, "..."]) -> str:
    """Checksum of an array's bytes in C order, 64 hex digits, read in chunks; shape and dtype are not part of it."""
    return npy.combined(row_digests(array))


def row_digests(array: Shaped[np.ndarray, "..."]) -> bytes:
    """What `checksum` is made of, 32 bytes a block of rows: see `npy.RowDigests`."""
    flat = array.reshape(1) if array.ndim == 0 else array
    digests = npy.RowDigests(npy.row_bytes(flat.shape, flat.dtype))
    for where in row_chunks(flat):
        digests.update(np.ascontiguousarray(flat[where]).reshape(-1).view(np.uint8).data)
    return digests.digests()


def row_chunks(array: Shaped[np.ndarray, "N ..."]) -> Iterator[slice]:
    """Slices over the first axis that hold some MiB each."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    return (slice(start, start + step) for start in range(0, array.shape[0], step))


def digest_of(values: Iterable[str | int]) -> str:
    """SHA-256 over a sequence of strings and integers, 64 hex digits; 12 and "12" differ, and so do two orders."""
    digest = hashlib.sha256()
    for value in values:
        kind, data = ("s" if isinstance(value, str) else "i"), str(value).encode("utf-8", "surrogatepass")
        digest.update(f"{kind}{len(data)}:".encode() + data)
    return digest.hexdigest()
