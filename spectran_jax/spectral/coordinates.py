"""Where the coordinates of the items go: to memory or to a file, once, whatever their dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Num

from spectran_jax import processes
from spectran_jax.npy import BFLOAT16, ArrayWriter, allocate, combined, open_array, rewrite
from spectran_jax.spectral.storage import DTYPES, int8_scale, quantise

Block = tuple[slice, Bool[np.ndarray, "rows"], Float[np.ndarray, "part r"]]
"""Consecutive items, which of them have text, and the float64 coordinates of those."""

Settle = Callable[[Float[np.ndarray, "r"]], tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]]
"""From the root mean square of each component as written: which components stay, in which order, and by what each
is multiplied."""

TOLERANCE = {"float32": 2.0**-24, "bfloat16": 2.0**-12, "int8": 0.0}
"""Relative corrections up to this are lost in the rounding of the dtype: not worth rewriting u for."""

_STEP_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Kept:
    """Coordinates as they are stored."""

    u: Num[np.ndarray, "N k"]
    """In memory, or memory-mapped."""
    u_scale: Float[np.ndarray, "k"] | None
    columns: Int[np.ndarray, "k"]
    """The components that stayed, in their order."""
    rms: Float[np.ndarray, "r"]
    """float64, of each component as written, before `Settle`."""
    sha256: str
    """Of the bytes of a file; "" in memory."""


def keep(
    blocks: Iterable[Block], *, shape: tuple[int, int], count: int, dtype: str, settle: Settle, out: Path | None
) -> Kept:
    """Stores the coordinates of all items from consecutive blocks, zeros where an item has no text.

    What the components are multiplied by, and the scale of int8, are known only after the last block. Where that
    changes anything (always for int8), the coordinates are written as float32 (bfloat16 for itself) and then
    changed in place: a pass over u, not of the embeddings. A bfloat16 that is changed so is rounded twice.

    Args:
      blocks: see `Block`.
      shape: [N, r].
      count: n, items with text.
      dtype: "float32", "bfloat16" or "int8".
      settle: see `Settle`.
      out: the .npy file; None keeps them in memory.

    Raises:
      InputError: int8 and a component with too heavy a tail; or the file can't be written.
      RunError: the disk is full.
    """
    draft = draft_dtype(dtype)
    measured = _Measured(shape[1], tails=dtype == "int8")

    if out is None:
        u = np.empty(shape, draft)
        for where, block in measured.full(blocks):
            u[where] = block
        sha256 = ""
    else:
        with ArrayWriter(out, shape=shape, dtype=draft) as writer:
            for _, block in measured.full(blocks):
                writer.write(block)
        u, sha256 = open_array(out, draft), writer.sha256
    rms = np.sqrt(measured.squares / count)
    columns, factor = settle(rms)
    same = len(columns) == shape[1] and bool((np.diff(columns) == 1).all()) and bool((factor == 1).all())
    if same and draft == DTYPES[dtype]:
        return Kept(u, None, columns, rms, sha256)

    change = _Change(columns, factor, measured.absmax, rms, dtype)
    if out is None:
        changed = np.empty((shape[0], len(columns)), DTYPES[dtype])
        for where, block in change.blocks(u):
            changed[where] = block
        return Kept(changed, change.u_scale, columns, rms, "")
    del u  # the file changes under it
    sha256 = rewrite(out, change, dtype=draft, columns=len(columns), into=DTYPES[dtype])
    return Kept(open_array(out, DTYPES[dtype]), change.u_scale, columns, rms, sha256)


def keep_shared(
    blocks: Iterable[Block], *, rows: slice, shape: tuple[int, int], count: int, dtype: str, settle: Settle, out: Path
) -> Kept:
    """`keep` by all processes, each from the blocks of its own rows, into one file that they share; collective.

    Each writes a draft beside the file first: what the components are multiplied by, how many stay and the scale of
    int8 are known only when all have written theirs.

    Args:
      blocks: the rows of this process, counted from 0.
      rows: which of the N they are.
      shape: [N, r].
      count: n, items with text, of all processes.
      dtype: see `keep`.
      settle: see `Settle`; gives the same on every process.
      out: the .npy file, on a file system that all processes share.

    Raises:
      InputError, RunError: as `keep`, the same on every process.
    """
    draft, measured = draft_dtype(dtype), _Measured(shape[1], tails=dtype == "int8")
    own = out.with_name(f"{out.name}.{jax.process_index()}")

    def write_draft() -> None:
        with ArrayWriter(own, shape=(rows.stop - rows.start, shape[1]), dtype=draft) as writer:
            for _, block in measured.full(blocks):
                writer.write(block)

    processes.together(write_draft)
    rms = np.sqrt(processes.gathered(measured.squares).sum(axis=0) / count)
    columns, factor = settle(rms)
    change = _Change(columns, factor, processes.gathered(measured.absmax).max(axis=0), rms, dtype)
    final = (shape[0], len(columns))
    processes.by_first(lambda: allocate(out, shape=final, dtype=DTYPES[dtype]))

    def write() -> bytes:
        with ArrayWriter(out, shape=final, dtype=DTYPES[dtype], rows=rows) as writer:
            for _, block in change.blocks(open_array(own, draft)):
                writer.write(block)
        own.unlink()
        return writer.digests

    sha256 = combined(b"".join(processes.gathered_bytes(processes.together(write))))
    return Kept(open_array(out, DTYPES[dtype]), change.u_scale, columns, rms, sha256)


def draft_dtype(dtype: str) -> np.dtype[Any]:
    """What coordinates are written as before their final scale is known."""
    return BFLOAT16 if dtype == "bfloat16" else DTYPES["float32"]


class _Measured:
    """Blocks as they are written, and what is learnt of them on the way."""

    def __init__(self, rank: int, *, tails: bool) -> None:
        self.squares, self.absmax, self.tails = np.zeros(rank), np.zeros(rank), tails

    def full(self, blocks: Iterable[Block]) -> Iterator[tuple[slice, Float[np.ndarray, "rows r"]]]:
        """float32, with zeros for the items without text."""
        for where, part, rows in blocks:
            self.squares += np.einsum("ij,ij->j", rows, rows)
            if self.tails and len(rows):
                np.maximum(self.absmax, np.maximum(rows.max(axis=0), -rows.min(axis=0)), out=self.absmax)
            block = rows.astype(np.float32)
            if not part.all():
                block = np.zeros((len(part), len(self.squares)), np.float32)
                block[part] = rows
            yield where, block


class _Change:
    """From rows as drafted to rows as they stay."""

    def __init__(
        self, columns: np.ndarray, factor: np.ndarray, absmax: np.ndarray, rms: np.ndarray, dtype: str
    ) -> None:
        self.columns, self.factor = columns, factor.astype(np.float32)
        self.u_scale = int8_scale(absmax[columns] * factor, rms[columns] * factor) if dtype == "int8" else None

    def __call__(self, block: Num[np.ndarray, "rows r"]) -> Num[np.ndarray, "rows k"]:
        changed = block[:, self.columns].astype(np.float32) * self.factor
        return changed if self.u_scale is None else quantise(changed, self.u_scale)

    def blocks(self, u: Num[np.ndarray, "rows r"]) -> Iterator[tuple[slice, Num[np.ndarray, "rows k"]]]:
        """All rows, some MiB at a time."""
        step = max(1, _STEP_BYTES // (4 * u.shape[1]))
        for start in range(0, len(u), step):
            where = slice(start, min(start + step, len(u)))
            yield where, self(u[where])
