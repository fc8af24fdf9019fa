"""Where the coordinates of the items go: to memory or to a file, once, whatever their dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from spectran_jax.npy import BFLOAT16, ArrayWriter, open_array, rewrite
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
    changed in place: a reading of u, not of the embeddings. A bfloat16 that is changed so is rounded twice.

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
    draft = BFLOAT16 if dtype == "bfloat16" else DTYPES["float32"]
    squares, absmax = np.zeros(shape[1]), np.zeros(shape[1])

    def full() -> Iterator[tuple[slice, np.ndarray]]:
        for where, part, rows in blocks:
            squares[:] += np.einsum("ij,ij->j", rows, rows)
            if dtype == "int8" and len(rows):
                np.maximum(absmax, np.maximum(rows.max(axis=0), -rows.min(axis=0)), out=absmax)
            block = rows.astype(np.float32)
            if not part.all():
                block = np.zeros((len(part), shape[1]), np.float32)
                block[part] = rows
            yield where, block

    if out is None:
        u = np.empty(shape, draft)
        for where, block in full():
            u[where] = block
        sha256 = ""
    else:
        with ArrayWriter(out, shape=shape, dtype=draft) as writer:
            for _, block in full():
                writer.write(block)
        u, sha256 = open_array(out, draft), writer.sha256
    rms = np.sqrt(squares / count)
    columns, factor = settle(rms)
    same = len(columns) == shape[1] and bool((np.diff(columns) == 1).all()) and bool((factor == 1).all())
    if same and draft == DTYPES[dtype]:
        return Kept(u, None, columns, rms, sha256)

    u_scale = int8_scale(absmax[columns] * factor, rms[columns] * factor) if dtype == "int8" else None
    single = factor.astype(np.float32)

    def change(block: np.ndarray) -> np.ndarray:
        block = block[:, columns].astype(np.float32) * single
        return block if u_scale is None else quantise(block, u_scale)

    if out is None:
        changed = np.empty((shape[0], len(columns)), DTYPES[dtype])
        step = max(1, _STEP_BYTES // (4 * shape[1]))
        for start in range(0, shape[0], step):
            changed[start : start + step] = change(u[start : start + step])
        return Kept(changed, u_scale, columns, rms, "")
    del u  # the file changes under it
    sha256 = rewrite(out, change, dtype=draft, columns=len(columns), into=DTYPES[dtype])
    return Kept(open_array(out, DTYPES[dtype]), u_scale, columns, rms, sha256)
