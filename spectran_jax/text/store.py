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

from spectran_jax import npy
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
        """Writes an array from consecutive blocks of its rows; no more than a block is held.

        Raises:
          RunError: the disk is full.
          InputError: the place can't be written to.
          ValueError: the blocks do not add up to `shape`.
        """
        with npy.ArrayWriter(self.path(name), shape=shape, dtype=dtype) as writer:
            for chunk in chunks:
                writer.write(chunk)
        self.adopt(name, shape=shape, dtype=dtype, sha256=writer.sha256)

    def adopt(self, name: str, *, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic], sha256: str) -> None:
        """Takes an array that lies at `path(name)` already, with the checksum of its bytes."""
        self._arrays[name] = _description(shape, np.dtype(dtype), sha256)


@contextlib.contextmanager
def sealed_folder(folder: Path, identity: Identity) -> Iterator[Draft]:
    """A new folder to write arrays into; sealed, and put in place of `folder`, when the block ends well.

    Where the block fails, nothing is left and an older `folder` stays as it was.

    Raises:
      RunError: the disk is full.
      InputError: the place can't be written to.
    """
    with npy.write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        draft = Draft(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)))
    try:
        yield draft
        with npy.write_errors(folder):
            meta = {"format": _FORMAT, "identity": dict(identity), "arrays": dict(sorted(draft._arrays.items()))}
            (draft.folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            _put_in_place(draft.folder, folder)
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)


def open_sealed(folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str] = ()) -> Sealed | None:
    """The arrays of a sealed folder, memory-mapped and checked; None where there is none or it can't be trusted.

    `optional` arrays are given where the folder has them. A folder that is damaged or stands for something else is
    reported by a warning, and is to be written anew.
    """
    if not folder.exists():
        return None
    try:
        return _open(folder, identity, names, optional, verify=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = f"{_META} lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        logger.warning("%s can't be trusted and is made anew: %s.", folder, reason)
        return None


def reopen(folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str] = ()) -> Sealed:
    """The arrays of a folder that this process has just sealed: no second look at their checksums."""
    return _open(folder, identity, names, optional, verify=False)


def _open(folder: Path, identity: Identity, names: Sequence[str], optional: Sequence[str], *, verify: bool) -> Sealed:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    if meta["format"] != _FORMAT:
        raise ValueError(f"its format is {meta['format']}, not {_FORMAT}")
    for key in sorted({*identity, *meta["identity"]}):
        if meta["identity"].get(key) != identity.get(key):
            raise ValueError(f"it was made for another {key!r}")
    arrays = {}
    for name in [*names, *(name for name in optional if name in meta["arrays"])]:
        sealed = meta["arrays"][name]
        array = npy.open_array(folder / f"{name}.npy", npy.BFLOAT16 if sealed["dtype"] == "bfloat16" else None)
        if verify and _description(array.shape, array.dtype, checksum(array)) != sealed:
            raise ValueError(f"{name}.npy does not match the shape, dtype and checksum in {_META}")
        arrays[name] = array
    digest = digest_of([json.dumps([meta["identity"], meta["arrays"]], sort_keys=True)])
    return Sealed(arrays, digest)


def _description(shape: tuple[int, ...], dtype: np.dtype[Any], sha256: str) -> dict[str, Any]:
    name = "bfloat16" if dtype == npy.BFLOAT16 else dtype.str
    return {"shape": list(shape), "dtype": name, "sha256": sha256}


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
