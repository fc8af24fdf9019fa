"""Where the time of a run goes: seconds by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Phases:
    """Wall-clock seconds by phase. A step runs while the host goes on; its time shows where the host waits for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def training(self) -> float:
        """Seconds of input, transfer and steps."""
        return sum(self.seconds.get(name, 0.0) for name in ("input", "transfer", "step"))
