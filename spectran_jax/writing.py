"""Files that are written whole or not at all: a reader, or a process that is killed, never leaves half of one."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from spectran_jax.errors import RunError


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of the text as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all (temporary file, fsync, rename).

    A link is followed; a device or a pipe gets the content as it is.

    Raises:
      RunError: where the disk refuses.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:64]}.{os.getpid()}.tmp")  # whole names may be as long as names can be
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.write(content)
            return
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"Could not write {path}: {error.strerror}.") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of indented JSON; NaN is refused, for JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_bytes` of a compressed .npz of arrays by name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, dict(arrays)))
    write_bytes(path, buffer.getvalue())
