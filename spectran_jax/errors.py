"""The errors that end a command, each with its exit status and one message for a person.

So do files that the system refuses, and memory that is used up. Everything else that escapes is a defect and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

NOT_MOUNTED = (
    "this is an address and no path; name a file or folder of a file system that is mounted here (launch/README.md)."
)
"""What is said of gs://... and the like, which would become a folder of that name here."""

_REFUSED = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR),
        *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EBUSY),
    }
)
"""What the system says of a name, and would say again."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says where a disk or a quota has no room left, or a file may not grow."""

_BROKEN = frozenset({errno.EIO, errno.ESTALE})
"""What the system says of an open file whose disk is broken, or whose server has lost it."""

_OF_MEMORY = re.compile("memory|alloc|hbm", re.IGNORECASE)
"""What XLA's compilers and allocators say where a device's memory is used up."""

_FEW = 20
"""Names that are listed beside a suggestion; more would hide it."""


class SpectranError(Exception):
    """A message for the user; ends a command without a traceback."""

    exit_status = 1


class InputError(SpectranError):
    """Bad input or configuration: say what, where and how to mend it (exit status 2)."""

    exit_status = 2


class RunError(SpectranError):
    """A failure while running: loss became NaN, disk full (exit status 1)."""

    exit_status = 1


class Diverged(RunError):
    """Training that left the finite numbers: a fact about its configuration (exit status 1)."""


class Interrupted(BaseException):
    """Stopped on request (a signal); start the same command again (exit status 75).

    Like KeyboardInterrupt no `Exception`, so that nothing that copes with failures takes it for one.
    """

    exit_status = 75


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that no registry holds: suggests the nearest, lists the known where they are few or none is
    near."""
    known = sorted(known)
    near = nearest(name, known)
    hint = "" if near is None else f" Did you mean {near!r}?"
    listed = f" Known: {', '.join(known)}." if near is None or len(known) <= _FEW else ""
    return InputError(f"Unknown {kind} {name!r}.{listed}{hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another, whatever the case of letters; None where none is."""
    plain = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), plain, n=1)
    return plain[near[0]] if near else None


def first_line(error: BaseException, length: int | None = None) -> str:
    """What an error of a library says first, at most `length` characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


def refusal(error: OSError) -> type[InputError] | type[RunError]:
    """What a refused file is: the fault of the input where the name is, else a failure that may pass (a full disk, a
    server that is away, too many open files)."""
    return InputError if error.errno in _REFUSED else RunError


def outcome(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the one line of an error for people; None for a defect, which keeps its traceback.

    An error for people is a `SpectranError` or an interruption, and also what the system says of a file, or memory that
    is used up, on the host or on a device.
    """
    if isinstance(error, SpectranError | Interrupted):
        return error.exit_status, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_status, "Stopped by SIGINT; start the same command again."
    if isinstance(error, OSError):
        if error.filename is not None:
            return refusal(error).exit_status, f"{error.filename}: {error.strerror}."
        if error.errno in DISK_FULL | _BROKEN:  # of a file that was open
            return RunError.exit_status, f"Can't go on writing or reading: {error.strerror}."
        return None
    # JAX's own class has no name that stays, and importing it takes a second.
    exhausted = "RESOURCE_EXHAUSTED" in str(error)
    if isinstance(error, MemoryError) or (exhausted and _OF_MEMORY.search(str(error))):
        return RunError.exit_status, (
            f"Out of memory ({first_line(error, 200)}). Take a smaller --batch_size, --max_length, --negatives or "
            "--eval_batch_size, or more devices."
        )
    if exhausted:  # gRPC says so of messages and streams, a store of its quota
        return RunError.exit_status, f"A limit of the network or of a service is reached ({first_line(error, 200)})."
    return None


def exit_with_message(main: Callable[[], None]) -> None:
    """Runs `main`; turns an error for people into one line on stderr and its exit status."""
    try:
        main()
        print(end="", flush=True)  # also where there is no stdout
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        told = outcome(error)
        if told is None and not (isinstance(error, BrokenPipeError) and _nobody_reads()):
            raise
        _drop_unwritten()
        if told is None:
            sys.exit(RunError.exit_status)
        leave(*told)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that its reader has left, as `head` does."""
    try:
        asked = select.poll()
        asked.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in asked.poll(0))
    except (OSError, ValueError):  # it is no file
        return False


def _drop_unwritten() -> None:
    """Lets go of what stdout does not take; Python would fail at it once more in the end, with a status of its own."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(status: int, message: str) -> NoReturn:
    """Ends the command with one line on stderr, which a stop on request does not call an error."""
    label = "" if status == Interrupted.exit_status else "error: "
    print(f"{label}{message}", file=sys.stderr, flush=True)
    sys.exit(status)
