"""What stood in the way where a checkpoint can't be read or written: its files, or the system."""

from __future__ import annotations

import errno
import os
import re

import jax

from spectran_jax.errors import first_line


def system_code(error: BaseException) -> int | None:
    """The error number of the system, which TensorStore wraps in pages of paths."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else getattr(error, "errno", None)


def fault_of_the_system(error: BaseException) -> str | None:
    """What went wrong where that says nothing about a checkpoint's files: no memory, no permission, a lost server, a
    device or a network between devices that failed."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" in str(seen):
            return first_line(seen, 200)
        code = system_code(seen)
        if code is not None and code not in (errno.ENOENT, errno.ENOTDIR):  # of a torn checkpoint files are missing
            return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    return None
