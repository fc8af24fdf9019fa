"""Arrays on disk that say what they are: a folder of .npy files, sealed by a meta.json with their checksums.

A folder is written under another name and renamed when complete, so that a killed or failed write leaves nothing
that is taken for finished. What is read back is checked against its seal: the identity that the reader asks
for (whose items, whose text, which encoder) and the SHA-256 of every array. Nothing is ever unpickled.

Several processes share the folders, and so a file system (POSIX: NFS, Lustre, Filestore; not an object store). All of
them open, fill and seal a folder together: each reads and writes its own rows of the large arrays, and checks those
only; process 0 writes the small ones and the seal, and renames the folder when all are done. Where one of them fails,
all fail, with the same message. With one process that is all the same without company.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectran_jax import npy, processes
from spectran_jax.errors import InputError, first_line
from spectran_jax.text.digests import digest_of, row_digests
from spectran_jax.writing import new_folder, write_errors

logger = logging.getLogger(__name__)

Identity = Mapping[str, str]
"""What a folder stands for, e.g. {"items": digest, "encoder": name}; compared entry by entry."""

_FORMAT = 2
_META = "meta.json"
_SEEN_SECONDS = 120.0
"""How long a network file system may go on saying that a new folder is not there."""


@dataclasses.dataclass(frozen=True)
class Sealed:
    """What a sealed folder holds."""

    arrays: dict[str, np.ndarray]
    """By name; memory-mapped, read-only."""
    digest: str
    """SHA-256 over the identity and each array's shape, dtype and checksum, 64 hex digits."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A folder that is being filled."""

    folder: Path
    _arrays: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The file of an array."""
        return self.folder / f"{name}.npy"

    def write(
        self,
        name: str,
        chunks: Iterable[np.ndarray],
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type[np.generic],
    ) -> None:
        """Writes an array that every process has, from consecutive blocks of its rows; process 0 does.

        Raises:
          RunError: the disk is full.
          InputError: the place can't be written to.
          ValueError: the blocks do not add up to `shape`.
        """

        def write() -> None:
            with npy.ArrayWriter(self.path(name), shape=shape, dtype=dtype) as writer:
                for chunk in chunks:
                    writer.write(chunk)
            self.adopt(name, shape=shape, dtype=dtype, sha256=writer.sha256)

        processes.by_first(write)

    def write_rows(
        self,
        name: str,
        chunks: Iterable[np.ndarray],
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type[np.generic],
    ) -> None:
        """Writes an array of which every process has its own rows (`processes.rows_of`), from blocks of these.

        Raises:
          As `write`, the same on every process.
        """
        path, rows = self.path(name), processes.rows_of(shape[0])
        processes.by_first(lambda: npy.allocate(path, shape=shape, dtype=dtype))

        def write() -> bytes:
            with npy.ArrayWriter(path, shape=shape, dtype=dtype, rows=rows) as writer:
                for chunk in chunks:
                    writer.write(chunk)
            return writer.digests

        digests = b"".join(processes.gathered_bytes(processes.together(write)))
        self.adopt(name, shape=shape, dtype=dtype, sha256=npy.combined(digests))

    def adopt(self, name: str, *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic], sha256: str) -> None:
        """Takes an array that lies at `path(name)` already, with the checksum of its bytes."""
        self._arrays[name] = _description(shape, np.dtype(dtype), sha256)


@contextlib.contextmanager
def sealed_folder(folder: Path, identity: Identity) -> Iterator[Draft]:
    """A new folder to write arrays into; sealed, and put in place of `folder`, when the block ends well.

    As `writing.new_folder`, with one draft for all processes: what another run puts there meanwhile stands. The block
    must fail on all processes or on none (`processes.together`).

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to, or is not one place for all processes.
    """
    with contextlib.ExitStack() as stack:  # of process 0, which makes the folder

        def make() -> str:
            with write_errors(folder):
                return stack.enter_context(new_folder(folder)).name

        name = processes.together(make if jax.process_index() == 0 else lambda: "")
        draft = Draft(folder.parent / processes.gathered_bytes(name.encode())[0].decode())

        def seal() -> None:
            with write_errors(folder):
                meta = {"format": _FORMAT, "identity": dict(identity), "arrays": dict(sorted(draft._arrays.items()))}
                (draft.folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
                stack.close()  # which puts it in place

        processes.together(lambda: _require_shared(draft.folder))
        yield draft
        processes.by_first(seal)


def _require_shared(folder: Path) -> None:
    """Refuses a folder that process 0 made and another process does not see."""
    if not _comes(folder):
        raise InputError(
            f"Process {jax.process_index()} does not see {folder.parent} as process 0 does: --data_dir must lie on a "
            "file system that all processes share."
        )


def open_sealed(folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str] = ()) -> Sealed | None:
    """The arrays of a sealed folder, memory-mapped and checked; None where there is none or it can't be trusted.

    `optional` arrays are given where the folder has them. A folder that is damaged or stands for something else is
    reported by a warning, and is to be written anew.
    """
    try:
        state, found = ("", _open(folder, identity, names, optional)) if folder.exists() else ("absent", None)
        own = [] if found is None else [_own_digests(array) for array in found[0].arrays.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        state = f"{_META} lacks {error}" if isinstance(error, KeyError) else first_line(error).rstrip(".")
    states = {data.decode() for data in processes.gathered_bytes(state.encode())} - {""}
    if states == {"absent"}:
        return None
    if not states and found is not None:
        sealed, seals = found
        for name, digests in zip(sealed.arrays, own, strict=True):
            if npy.combined(b"".join(processes.gathered_bytes(digests))) != seals[name]:
                states.add(f"{name}.npy does not match the checksum in {_META}")
        if not states:
            return sealed
    logger.warning("%s can't be trusted and is made anew: %s.", folder, min(states - {"absent"}))
    return None


def reopen(folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str] = ()) -> Sealed:
    """The arrays of a folder that has just been sealed: no second look at their checksums.

    Raises:
      InputError: where this process does not see it in time.
    """
    if not _comes(folder):
        raise InputError(
            f"Process {jax.process_index()} does not see {folder}, which process 0 has written: --data_dir must "
            "lie on a file system that all processes share."
        )
    return _open(folder, identity, names, optional)[0]


def _comes(folder: Path) -> bool:
    """Whether this process sees, within some time, a folder that process 0 has made."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while not folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _open(
    folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str]
) -> tuple[Sealed, dict[str, str]]:
    """What a folder holds, and the checksum by its seal of each array."""
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    if meta["format"] != _FORMAT:
        raise ValueError(f"its format is {meta['format']}, not {_FORMAT}")
    for key in sorted({*identity, *meta["identity"]}):
        if meta["identity"].get(key) != identity.get(key):
            raise ValueError(f"it was made for another {key!r}")
    arrays, seals = {}, {}
    for name in [*names, *(name for name in optional if name in meta["arrays"])]:
        sealed = meta["arrays"][name]
        array = npy.open_array(folder / f"{name}.npy", npy.BFLOAT16 if sealed["dtype"] == "bfloat16" else None)
        if _description(array.shape, array.dtype, sealed["sha256"]) != sealed:
            raise ValueError(f"{name}.npy does not match the shape and dtype in {_META}")
        arrays[name], seals[name] = array, sealed["sha256"]
    digest = digest_of([json.dumps([meta["identity"], meta["arrays"]], sort_keys=True)])
    return Sealed(arrays, digest), seals


def _own_digests(array: np.ndarray) -> bytes:
    """Of the rows that this process answers for."""
    rows = np.atleast_1d(array)
    return row_digests(rows[processes.rows_of(len(rows))])


def _description(shape: tuple[int, ...], dtype: np.dtype[Any], sha256: str) -> dict[str, Any]:
    name = "bfloat16" if dtype == npy.BFLOAT16 else dtype.str
    return {"shape": list(shape), "dtype": name, "sha256": sha256}
