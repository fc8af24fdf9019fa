"""Whether a file is still what it was: what is made of it must be of the content that its digest is of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spectran_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class FileState:
    """A file as it was found; another write to it, or another file in its place, has another state."""

    path: Path
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """As it is now."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)

    def require_same(self) -> None:
        """Raises InputError where the file is not that any more."""
        try:
            same = FileState.of(self.path) == self
        except OSError:  # it is gone
            same = False
        if not same:
            raise InputError(f"{self.path} was changed while it was read; start again when it is complete.")
