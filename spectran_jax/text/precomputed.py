"""The user's own text embeddings: a .npy file, checked once and memory-mapped, never held in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from spectran_jax import npy, processes
from spectran_jax.errors import InputError, first_line
from spectran_jax.file_state import FileState
from spectran_jax.text import store
from spectran_jax.text.digests import checksum, digest_of, row_chunks, scan


def load(
    path: Path,
    *,
    item_ids: Sequence[str | int],
    items_row: Int[np.ndarray, "N"],
    expected_rows: int | None,
    cache_dir: Path,
    items_file: str = "the items file",
) -> tuple[Float[np.ndarray, "N m"], Bool[np.ndarray, "N"], str, FileState | None]:
    """Opens [rows of the items file, m] text embeddings and picks the rows of the catalogue.

    Where the catalogue is a run of the file's rows, the file itself is mapped. Otherwise (a k-core left items out)
    the picked rows are copied to disk once, in chunks, and that copy is mapped. With several processes each reads and
    copies its own rows (collective).

    Args:
      path: the .npy file; float16, float32 or float64.
      item_ids: original id of each dense item, for messages.
      items_row: int32 [N], the row of the items file that each dense item came from.
      expected_rows: rows of the items file; None where only a lower bound, from `items_row`, is known.
      cache_dir: where a copy of picked rows goes.
      items_file: its name, for messages.

    Returns:
      The matrix [N, m] in the file's dtype; which rows are not all zero, bool [N]; a digest of content and order; the
      file as it was before the digest was taken, where the matrix is mapped from it and not from a copy.

    Raises:
      InputError: file missing, no .npy, of Python objects, not a floating matrix, another number of rows, m < 2,
        NaN, inf or a number beyond float32's range in a row of the catalogue; or changed while it was copied.
    """
    matrix, state = processes.together(lambda: _open(path))
    rows = matrix.shape[0]
    needed = int(np.max(items_row, initial=-1)) + 1
    if rows != expected_rows if expected_rows is not None else rows < needed:
        wanted = f"{expected_rows}" if expected_rows is not None else f"at least {needed}"
        raise InputError(
            f"{path}: text embeddings have {rows} rows, but {items_file} has {wanted} items; "
            "there must be one row per item, in its order."
        )
    found = processes.together(lambda: scan(matrix[processes.rows_of(rows)]))
    digests = b"".join(processes.gathered_bytes(found.digests))
    finite, narrow, nonzero = (
        processes.gathered_rows(part, rows) for part in (found.finite, found.narrow, found.nonzero)
    )
    for good, fault, right in (
        (finite, "NaN or inf", "Every number must be finite; a row of zeros says that an item has no text."),
        (narrow, "numbers beyond float32's range", "Every number must lie between -3.4e38 and 3.4e38; scale them."),
    ):
        bad = np.flatnonzero(~good[items_row])
        if len(bad):
            first = ", ".join(repr(item_ids[i]) for i in bad[:3])
            raise InputError(
                f"{path}: {len(bad)} of {len(items_row)} items have {fault} in their text embedding, the first: "
                f"{first}. {right}"
            )
    identity = {
        "source": f"{npy.combined(digests)} {matrix.dtype.str} {rows}x{matrix.shape[1]}",
        "rows": checksum(items_row.astype(np.int64)),
    }
    digest = digest_of([*identity.values(), digest_of(item_ids)])
    picked = _pick(matrix, items_row, identity, cache_dir, state)
    return picked, nonzero[items_row], digest, state if np.may_share_memory(picked, matrix) else None


def _open(path: Path) -> tuple[np.ndarray, FileState]:
    try:
        if not path.is_file():
            raise InputError(f"--embeddings: file not found: {path}; it must be a .npy file.")
        state, matrix = FileState.of(path), npy.open_array(path)
    except (OSError, ValueError, EOFError) as error:
        reason = "it holds pickled Python objects" if "object" in str(error).lower() else first_line(error).rstrip(".")
        raise InputError(
            f"{path} can't be read as a .npy file ({reason}); write it with "
            "numpy.save as a float array [items, dimension]."
        ) from error
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise InputError(
            f"{path}: text embeddings must have shape [items, dimension] with a dimension of at least 2, "
            f"got {matrix.shape}."
        )
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        unnamed = matrix.dtype.kind == "V" and matrix.dtype.itemsize == 2
        hint = "; a .npy file has no name for bfloat16: " if unnamed else "; "
        raise InputError(
            f"{path}: text embeddings must be float16, float32 or float64, got dtype {matrix.dtype}{hint}"
            "np.save it with .astype('float32')."
        )
    return matrix, state


def _pick(
    matrix: np.ndarray, items_row: np.ndarray, identity: store.Identity, cache_dir: Path, state: FileState
) -> np.ndarray:
    """`matrix[items_row]`, as a view where it is one, else as a memory-mapped copy; native byte order."""
    if len(items_row) and matrix.dtype.isnative and (np.diff(items_row) == 1).all():
        return matrix[items_row[0] : items_row[0] + len(items_row)]
    folder = cache_dir / "text" / f"rows-{digest_of(identity.values())[:32]}"
    stored = store.open_sealed(folder, identity, ["embeddings"])
    if stored is None:
        shape, dtype = (len(items_row), matrix.shape[1]), matrix.dtype.newbyteorder("=")
        own = items_row[processes.rows_of(len(items_row))]
        picked = (matrix[own[where]] for where in row_chunks(np.broadcast_to(matrix[:1], (len(own), shape[1]))))
        with store.sealed_folder(folder, identity) as draft:
            draft.write_rows("embeddings", picked, shape=shape, dtype=dtype)
            processes.together(state.require_same)  # or the copy is not of what `identity` says
        stored = store.reopen(folder, identity, ["embeddings"])
    return stored.arrays["embeddings"]
