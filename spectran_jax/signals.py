"""SIGTERM and Ctrl-C: where work can be saved they ask for it, elsewhere they end the command by its clean-up."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from spectran_jax.errors import Interrupted


class StopRequest:
    """A context in which SIGTERM and SIGINT set `requested` while `deferred`, else raise `Interrupted`.

    A second signal while one is pending raises at once, so that a person is never stuck.

    Args:
      goes_on: from where the same command goes on when it is started again, "" where it starts anew.
    """

    def __init__(self, goes_on: str = "the last checkpoint") -> None:
        then = f" to go on from {goes_on}" if goes_on else ", which begins anew"
        self._advice = f"start the same command again{then}"
        self.requested: str | None = None
        self.deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers; elsewhere the caller owns them
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.deferred and self.requested is None:
            self.requested = name
            return
        raise Interrupted(f"Stopped by {name}; {self._advice}.")
