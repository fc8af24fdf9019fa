"""`--profile`: a trace of some steps, for Perfetto (ui.perfetto.dev) or XProf."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

_log = logging.getLogger(__name__)

_SKIP = 3
"""Steps after the start that are not traced: they compile, and fill the caches."""


class Profile:
    """A context that traces `steps` updates, from a few after the start on; writes nothing where `steps` is 0."""

    def __init__(self, folder: Path, steps: int, *, after: int) -> None:
        """Starts nothing yet.

        Args:
          folder: where the trace goes: `plugins/profile/*/` below it holds an .xplane.pb for XProf and a
            perfetto_trace.json.gz.
          steps: updates to trace.
          after: the step that this start begins from.
        """
        self._folder, self._steps = folder, steps
        self._first = self._last = after + _SKIP
        self._running = False

    def at(self, step: int, state: Any) -> None:
        """`step` updates are dispatched; `state` is what the last of them gives."""
        if self._steps and not self._running and step >= self._first:
            jax.block_until_ready(state)
            self._last = step + self._steps
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._running and step >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running, self._steps = False, 0

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self._stop()
        elif self._steps and kind is None:
            _log.warning("--profile=%d wrote no trace: the run ended before its step %d.", self._steps, self._first)
