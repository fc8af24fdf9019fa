"""Where the time of a run goes: seconds by phase, and how long it has been standing in one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Phases:
    """Wall-clock seconds by phase. A step runs while the host goes on; its time shows where the host waits for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[str] = []
        self._moved = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase."""
        start = self._moved = time.perf_counter()
        self._inside.append(name)
        try:
            yield
        finally:
            self._moved = time.perf_counter()  # first: another thread looks
            self._inside.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + self._moved - start

    def move(self) -> None:
        """A sign of progress within a phase."""
        self._moved = time.perf_counter()

    def moving(self, report: Callable[[int], None]) -> Callable[[int], None]:
        """`report`, whose calls are signs of progress within a phase."""

        def call(done: int) -> None:
            self.move()
            report(done)

        return call

    def standing(self) -> tuple[float, str]:
        """Seconds since a phase began, ended or moved, and the phase; may be called by another thread."""
        inside = tuple(self._inside)
        return time.perf_counter() - self._moved, inside[-1] if inside else "none"

    def training(self) -> float:
        """Seconds of input, transfer and steps."""
        return sum(self.seconds.get(name, 0.0) for name in ("input", "transfer", "step"))
