"""What is written whole or not at all: a reader, or a process that is killed, never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spectran_jax.errors import DISK_FULL, RunError, refusal

if TYPE_CHECKING:
    import numpy as np

_ABANDONED_SECONDS = 24 * 3600.0
_DRAFT = ".spectran-draft-"
"""What the names of drafts begin with, and those of no folders of anybody else."""

_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of the text as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all (temporary file, fsync, rename).

    A link is followed; a device, a pipe or an open file (/dev/stdout) gets the content as it is.

    Raises:
      RunError: where the disk refuses.
      BrokenPipeError: nobody reads the pipe.
    """
    stream = _is_stream(path)
    path = path if stream else Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.tmp")  # whole names may be as long as names can be
    try:
        if stream:
            number = _open_file(path)
            with path.open("wb") if number is None else open(os.dup(number), "wb") as file:
                file.write(content)
            return
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"Could not write {path}: {error.strerror}.") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of indented JSON; NaN is refused, for JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_bytes` of a compressed .npz of arrays by name."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, dict(arrays)))
    write_bytes(path, buffer.getvalue())


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A draft beside `folder` to fill, which gets its name in one step when the block ends well.

    Where the block fails, nothing is left and an older `folder` stays as it was. Drafts that killed processes left
    there are removed, once nobody can still be at work on them.

    Args:
      folder: the name; what has it when the block begins gives way.
      replace: whether what another process put there meanwhile gives way, too. Else it stands, and the draft goes: it
        is as good where both made the same of the same inputs, and its owner may be opening it.

    Raises:
      OSError: as the system refuses; see `write_errors`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_DRAFT}*"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    old, draft = _inode(folder), _draft_beside(folder)
    draft.mkdir()
    try:
        yield draft
        _flush(draft)
        _put_in_place(draft, folder, old, replace)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_writable(output: Path) -> None:
    """Finds out before long work whether `--output`, a file or a folder, could be written beside what lies there.

    Raises:
      InputError, RunError: as the system refuses.
    """
    try:
        if _is_stream(output):
            if not os.access(output, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            tempfile.TemporaryFile(dir=Path(os.path.realpath(output)).parent).close()
    except OSError as error:
        raise refusal(error)(f"--output={output} can't be written ({error.strerror}); name another place.") from None


def _is_stream(path: Path) -> bool:
    """Whether it is a device, a pipe or an open file, which nothing may replace; asked before links are followed, as
    /dev/stdout leads to a pipe of no name, or to a file that others write to."""
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return special or _open_file(path) is not None


def is_stdout(path: Path) -> bool:
    """Whether what is written there comes out where `print` writes to."""
    return _open_file(path) == 1


def _open_file(path: Path) -> int | None:
    """The descriptor that /dev/stdout, /dev/fd/3 and the like stand for; opened anew, a file would be at its start."""
    found = _DESCRIPTOR.fullmatch(str(path))
    return int(found[1]) if found else _STANDARD.get(str(path))


@contextlib.contextmanager
def write_errors(place: Path) -> Iterator[None]:
    """Turns a failure to write into a message for the user.

    Raises:
      RunError: the disk is full, or broken.
      InputError: the place can't be written to.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise RunError(
                f"The disk is full: {place} could not be written ({reason}). Free some space, or choose another "
                "--data_dir."
            ) from error
        raise refusal(error)(f"{place} can't be written ({reason}); choose another folder with --data_dir.") from error


def is_abandoned(folder: Path) -> bool:
    """Whether a draft is what a killed process left behind: for a day nothing in it was written to."""
    try:
        last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:  # something went away just now: somebody is at work on it
        return False
    return time.time() - last > _ABANDONED_SECONDS


def _flush(folder: Path) -> None:
    """Waits until the files are on disk: a name must not outlive what it names when the power goes."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _draft_beside(folder: Path) -> Path:
    return folder.with_name(f"{_DRAFT}{uuid.uuid4().hex}")


def _inode(folder: Path) -> int | None:
    """Which folder it is that has this name; None where there is none."""
    with contextlib.suppress(OSError):
        return folder.stat().st_ino
    return None


def _put_in_place(draft: Path, folder: Path, old: int | None, replace: bool) -> None:
    aside = _draft_beside(folder)
    try:
        if replace or (old is not None and _inode(folder) == old):
            aside.mkdir()  # a folder can't be renamed over one that holds files
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside / "old")
        draft.rename(folder)
    except OSError as error:
        if replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        if not folder.exists():  # the draft could not take its place
            with contextlib.suppress(OSError):
                (aside / "old").rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
