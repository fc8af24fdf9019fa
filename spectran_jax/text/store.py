"""Arrays on disk that say what they are: a folder of .npy files, sealed by a meta.json with their checksums.

A folder is written under another name and renamed when complete, so that a killed or failed write leaves nothing
that is taken for finished. What is read back is checked against its seal: the identity that the reader asks
for (whose items, whose text, which encoder) and the SHA-256 of every array. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectran_jax.errors import InputError, RunError
from spectran_jax.text.digests import checksum, digest_of

logger = logging.getLogger(__name__)

Identity = Mapping[str, str]
"""What a folder stands for, e.g. {"items": digest, "encoder": name}; compared entry by entry."""

_FORMAT = 1
_META = "meta.json"
_ABANDONED_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Sealed:
    """What a sealed folder holds."""

    arrays: dict[str, np.ndarray]
    """By name; memory-mapped, read-only."""
    digest: str
    """SHA-256 over the identity and each array's shape, dtype and checksum, 64 hex digits."""


def write_array(
    path: Path, chunks: Iterable[np.ndarray], *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic]
) -> None:
    """Writes a .npy file from consecutive blocks of its rows; no more than a block is held.

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to.
      ValueError: the blocks do not add up to `shape`.
    """
    dtype = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    written = 0
    with _write_errors(path.parent):
        file = path.open("wb")
    with file:
        with _write_errors(path.parent):
            np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype).tobytes()
            with _write_errors(path.parent):
                # A plain write reports a full disk; a memory-map would be killed by a bus error.
                written += file.write(data)
        with _write_errors(path.parent):
            file.flush()
    if written != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"{path}: wrote {written} bytes, which is not an array of shape {shape} and dtype {dtype}.")


@contextlib.contextmanager
def sealed_folder(folder: Path, identity: Identity) -> Iterator[Path]:
    """A new folder to write .npy files into; sealed, and put in place of `folder`, when the block ends well.

    Where the block fails, nothing is left and an older `folder` stays as it was.

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to.
    """
    with _write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield draft
        with _write_errors(folder):
            _seal(draft, identity)
            _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def open_sealed(folder: Path, identity: Identity, names: Sequence[str]) -> Sealed | None:
    """The arrays of a sealed folder, memory-mapped and checked; None where there is none or it can't be trusted.

    A folder that is damaged or stands for something else is reported by a warning, and is to be written anew.
    """
    if not folder.exists():
        return None
    try:
        return _open(folder, identity, names, verify=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = f"{_META} lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        logger.warning("%s can't be trusted and is made anew: %s.", folder, reason)
        return None


def reopen(folder: Path, identity: Identity, names: Sequence[str]) -> Sealed:
    """The arrays of a folder that this process has just sealed: no second look at their checksums."""
    return _open(folder, identity, names, verify=False)


def open_array(path: Path) -> np.ndarray:
    """A read-only memory-map of a .npy file; never unpickles.

    Raises:
      ValueError, OSError, EOFError: not a .npy file, truncated, or of Python objects.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _open(folder: Path, identity: Identity, names: Sequence[str], *, verify: bool) -> Sealed:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    if meta["format"] != _FORMAT:
        raise ValueError(f"its format is {meta['format']}, not {_FORMAT}")
    for key in sorted({*identity, *meta["identity"]}):
        if meta["identity"].get(key) != identity.get(key):
            raise ValueError(f"it was made for another {key!r}")
    arrays = {}
    for name in names:
        array, sealed = open_array(folder / f"{name}.npy"), meta["arrays"][name]
        if verify and _description(array) != sealed:
            raise ValueError(f"{name}.npy does not match the shape, dtype and checksum in {_META}")
        arrays[name] = array
    digest = digest_of([json.dumps([meta["identity"], meta["arrays"]], sort_keys=True)])
    return Sealed(arrays, digest)


def _seal(draft: Path, identity: Identity) -> None:
    arrays = {path.stem: _description(open_array(path)) for path in sorted(draft.glob("*.npy"))}
    meta = {"format": _FORMAT, "identity": dict(identity), "arrays": arrays}
    (draft / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _description(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": checksum(array)}


def _put_in_place(draft: Path, folder: Path) -> None:
    draft.chmod(0o755)  # a temporary folder is private; a cache may be shared
    if folder.exists():
        # A folder can't be renamed over one that holds files, so the old one steps aside first.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside / "old")
        shutil.rmtree(aside, ignore_errors=True)
    try:
        draft.rename(folder)
    except OSError as error:
        # Another process that made the same arrays came first: its folder is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_abandoned(folder: Path) -> None:
    """Drafts that a killed process left behind long ago."""
    for draft in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(place: Path) -> Iterator[None]:
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
