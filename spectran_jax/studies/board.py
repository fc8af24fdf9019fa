"""Progress over many runs, on stderr: a live bar on a terminal, a line for each run that ends in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spectran_jax.progress import duration, print_line, stderr_console
from spectran_jax.report import words


class Board:
    """A context that shows how many runs are done, what runs, what failed and how long it may still take."""

    def __init__(
        self,
        description: str,
        total: int,
        before: int,
        parallel: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shows nothing yet.

        Args:
          description: what the runs are.
          total: how many there are.
          before: how many of them were finished earlier.
          parallel: how many run at a time.
          console: where to; stderr by default.
          clock: seconds since some fixed point.
        """
        self._description, self._total, self._untimed, self._parallel = description, total, before, parallel
        self._console = console or stderr_console()
        self._clock = clock
        self._begun: dict[str, float] = {}
        self._took: list[float] = []
        self._failed = 0
        self._bar: Progress | None = None

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[detail]}", markup=False, style="progress.percentage"),
                TimeElapsedColumn(),
                console=self._console,
                refresh_per_second=2,
            )
            self._row = self._bar.add_task(self._description, total=self._total, completed=self._untimed, detail="")
            self._bar.start()
        elif self._untimed:
            self._line(f"{self._description}: {self._untimed} of {self._total} are there already")
        else:
            self._line(f"{self._description}: {words.count(self._total, 'run')}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, name: str) -> None:
        """A run has begun."""
        self._begun[name] = self._clock()

    def again(self, name: str) -> None:
        """A run asked to be started again."""
        self._begun.pop(name, None)
        self._line(f"{name}: asks to be started again")

    def finished(self, name: str, failure: str = "", headline: str = "") -> None:
        """A run has ended, well or with a failure."""
        took = self._clock() - self._begun.pop(name, self._clock())
        self._took.append(took)
        self._failed += bool(failure)
        said = f"failed: {failure}" if failure else headline or "done"
        place = f"{self._untimed + len(self._took)}/{self._total}"
        left = f", about {duration(self.left())} left" if self._bar is None and self.left() >= 1 else ""
        self._line(f"{place} {name}: {said} ({duration(took)}){left}")

    def not_started(self, folder: str, number: int) -> None:
        """Runs of a folder will not begin, as others of it failed for what they share."""
        self._untimed += number
        self._failed += number
        if number:
            self._line(f"{folder}: {number} more not started, as these would fail alike")

    def left(self) -> float:
        """Seconds until the last run ends, at the mean time of those that have; NaN while none has."""
        if not self._took:
            return math.nan
        mean = sum(self._took) / len(self._took)
        open_ = self._total - self._untimed - len(self._took)
        gone = sum(min(self._clock() - begun, mean) for begun in self._begun.values())
        return max(mean * open_ - gone, 0.0) / max(min(self._parallel, open_), 1)

    def refresh(self) -> None:
        """Brings the bar up to date."""
        if self._bar is None:
            return
        done = self._untimed + len(self._took)
        parts = [f"{done}/{self._total}"]
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [f"{len(self._begun)} running", f"about {duration(self.left())} left"]
        self._bar.update(self._row, completed=done, detail=", ".join(parts))

    def _line(self, text: str) -> None:
        console = self._console if self._bar is None else self._bar.console
        print_line(console, text)
