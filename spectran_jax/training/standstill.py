"""A process of several that lives and gets no further: noticed, named and ended.

Heartbeats need no Python thread, so a process whose main thread hangs (on a file system that is gone, in a collective
that a device never ends) looks alive to the others, and they would wait for it for ever.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from spectran_jax.errors import Interrupted
from spectran_jax.training.cluster import Cluster
from spectran_jax.training.phases import Phases

_ALONE = ("input", "transfer")
"""Phases in which a process waits for no other one."""
_GRACE = 5.0
"""Seconds that it is given longer in other phases, so that the process that all wait for speaks first."""


class Watchdog:
    """Ends the run, status 75, where this process stays in one phase for longer than `cluster.hang_timeout`.

    To be entered and left by the main thread, around the loop. It looks from the end of the first step on: before,
    every process compiles the step, which may take any time; `hang_timeout` must allow for compiling what comes later
    (the first validation, another number of steps in one dispatch). The others pass on the message of the first to
    leave. That is the one to look at where it hangs in its input; in what all do together each waits for the others,
    and any may be first. A save may take longer, as long as its files change (`while_files_change`). Code that hangs
    with Python's lock in its hands can't be noticed from within.
    """

    def __init__(self, cluster: Cluster, phases: Phases) -> None:
        self._cluster, self._phases, self._looks = cluster, phases, False
        self._wanted = not cluster.alone and cluster.hang_timeout > 0
        self._main = threading.get_ident()

    def __enter__(self) -> Watchdog:
        if self._wanted:
            self._cluster.on_news.append(self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looks = self._wanted = False

    def begin(self, metrics: Any) -> None:
        """Begins to look once these arrays of a step are there; waits for those of the first step alone."""
        if self._wanted and not self._looks:
            jax.block_until_ready(metrics)
            self._phases.move()
            self._looks = True

    def _look(self, news: dict[str, str]) -> None:
        """Called by the cluster's thread, twice a second."""
        seconds, phase = self._phases.standing()
        limit = self._cluster.hang_timeout
        if not self._looks or seconds <= limit + _GRACE * (phase not in _ALONE):
            return
        self._cluster.fail(
            Interrupted(
                f"Process {self._cluster.index} of {self._cluster.count} on {socket.gethostname()} got no further for "
                f"{limit:g} s, in the phase {phase!r} at {place_of(self._main)}: it hangs, or waits for one that does. "
                "Start the same command again on all hosts to go on from the last checkpoint; --hang_timeout=SECONDS "
                "allows for longer."
            )
        )


@contextlib.contextmanager
def while_files_change(folder: Path, cluster: Cluster, phases: Phases) -> Iterator[None]:
    """Takes every change of what a folder holds for a sign of progress, as long as the block runs.

    For what is written by others, such as Orbax's threads, while the main thread waits: terabytes take hours. Looks
    three times within `cluster.hang_timeout`, since a walk through thousands of files is no small thing on a server.
    """
    if cluster.alone or cluster.hang_timeout <= 0:
        yield
        return
    done = threading.Event()

    def look() -> None:
        before = _sizes(folder)
        while not done.wait(cluster.hang_timeout / 3):
            now = _sizes(folder)
            if None not in (before, now) and now != before and not done.is_set():
                phases.move()
            before = now

    threading.Thread(target=look, name="while_files_change", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _sizes(folder: Path) -> dict[str, int] | None:
    """Bytes of every file below a folder; None where the system does not say, as of a server that is away."""
    sizes: dict[str, int] = {}
    refused: list[OSError] = []
    for path, _, names in os.walk(folder, onerror=refused.append):
        for name in names:
            file = os.path.join(path, name)
            try:
                sizes[file] = os.stat(file).st_size
            except OSError as error:
                refused.append(error)
    gone = all(isinstance(error, FileNotFoundError) for error in refused)  # renamed or deleted by now
    return sizes if gone else None


def place_of(thread: int) -> str:
    """Where a thread of this process stands: `file:line (function)` of its innermost Python frame."""
    frame = sys._current_frames().get(thread)
    return (
        "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
    )
