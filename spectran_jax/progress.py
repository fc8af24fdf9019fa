"""Progress on stderr: a live bar on a terminal, a plain line now and then in a log file.

Everything here takes plain Python numbers. When a device value becomes one is the caller's choice, so
that showing progress never makes a device wait.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.report import words

LINE_SECONDS = 10.0
"""Off a terminal, at most one line in this many seconds."""


_quiet = contextvars.ContextVar("quiet", default=False)


def stderr_console() -> Console:
    """A console on stderr: results go to stdout, so that they can be piped. Silent within `quiet`."""
    return Console(stderr=True, quiet=_quiet.get())


def print_line(console: Console, text: str) -> None:
    """One line, unwrapped and without markup: what it says may come from the user's data."""
    console.print(Text(text), soft_wrap=True, highlight=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing below an error is shown meanwhile, for a process beside the one that talks."""
    token, level = _quiet.set(True), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        _quiet.reset(token)
        logging.disable(level)


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`; `-:--:--` where they are unknown (NaN, infinite or negative)."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-:--:--"
    return str(datetime.timedelta(seconds=round(seconds)))


class _Pace:
    """Lets a line through at most every `interval` seconds of `clock`; the first one after one interval."""

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._clock = clock
        self._last = clock()

    def due(self) -> bool:
        now = self._clock()
        if now - self._last < self._interval:
            return False
        self._last = now
        return True


class Task:
    """Counts the work of one task; callable, so that it can be passed as a `progress(done, total)` callback."""

    def __init__(self, description: str, total: int | None, show: Callable[[Task], None]) -> None:
        self.description = description
        self.total = total
        self.completed = 0
        self._show = show

    def __call__(self, completed: int, total: int | None = None) -> None:
        """`completed` units are done, of `total` where that has become known."""
        self.completed = completed
        self.total = self.total if total is None else total
        self._show(self)

    def share(self) -> str:
        """`1,200/5,000 (24 %)`, or the count alone where the total is unknown."""
        if not self.total:
            return f"{self.completed:,}"
        return f"{self.completed:,}/{self.total:,} ({100 * self.completed // self.total} %)"


def _bar(console: Console, progress_class: type[Progress] = Progress) -> Progress:
    return progress_class(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[detail]}", markup=False, style="progress.percentage"),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
        expand=True,
    )


@contextlib.contextmanager
def _task_in(bar: Progress, description: str, total: int | None, *, keep: bool) -> Iterator[Task]:
    """A task as one more line of `bar`."""
    row = bar.add_task(description, total=total, detail="")
    try:
        yield Task(
            description,
            total,
            lambda t: bar.update(row, completed=t.completed, total=t.total, detail=t.share()),
        )
    finally:
        if not keep:
            bar.remove_task(row)


@contextlib.contextmanager
def _plain_task(
    console: Console, description: str, total: int | None, interval: float, clock: Callable[[], float]
) -> Iterator[Task]:
    """A task as lines: one every `interval` seconds, and one at the end if it took at least as long."""
    pace, start = _Pace(interval, clock), clock()
    handle = Task(
        description,
        total,
        lambda t: print_line(console, f"{t.description}: {t.share()}") if pace.due() else None,
    )
    yield handle
    if (elapsed := clock() - start) >= interval:
        print_line(console, f"{description}: done, {handle.completed:,} in {duration(elapsed)}")


@contextlib.contextmanager
def task(
    description: str,
    total: int | None = None,
    *,
    console: Console | None = None,
    interval: float = LINE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Task]:
    """Shows the progress of one piece of work: encoding text, decomposing, evaluation.

        with task("Encoding text", total=len(batches)) as progress:
            for done, batch in enumerate(batches, 1):
                ...
                progress(done)

    Args:
      description: what is being done.
      total: how many units there are; None where nobody knows, and for work without inner steps.
      console: where to; stderr by default.
      interval: off a terminal, at most one line in this many seconds, so that short work says nothing.
      clock: seconds since some fixed point.

    Yields:
      A `Task`, to be called with `completed`, or `(completed, total)`.
    """
    console = console or stderr_console()
    if not console.is_terminal:
        with _plain_task(console, description, total, interval, clock) as handle:
            yield handle
        return
    with _bar(console) as bar, _task_in(bar, description, total, keep=True) as handle:
        yield handle
        handle(handle.completed if total is None else total, total or max(handle.completed, 1))
        bar.update(bar.task_ids[0], completed=1, total=1, detail="")


class _TrainingBar(Progress):
    """A bar with a line of numbers under it."""

    status: Text = Text("")

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self.status


class TrainingProgress:
    """Progress of a training run: step, epoch, ETA, loss, examples per second, last validation.

    A context manager. The ETA is an upper end, since patience may end a run earlier. On a terminal it
    is a live bar; elsewhere a plain line at most every `interval` seconds, and one for every
    validation.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        console: Console | None = None,
        *,
        start: int = 0,
        interval: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts nothing yet; entering the context does.

        Args:
          total_steps: the most steps this run can take, from its very beginning.
          steps_per_epoch: updates in one pass over the data.
          console: where to; stderr by default.
          start: steps already done by the run that is being resumed.
          interval: off a terminal, at most one line in this many seconds.
          clock: seconds since some fixed point.
        """
        self.console = console or stderr_console()
        self._total = total_steps
        self._steps_per_epoch = max(1, steps_per_epoch)
        self._start = self._step = start
        self._interval = interval
        self._clock = clock
        self._paced_from: tuple[int, float] | None = None
        self._pace = _Pace(interval, clock)
        self._loss: float | None = None
        self._speed: float | None = None
        self._validation = ""
        self._best: float | None = None
        self._bar: _TrainingBar | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        if self.console.is_terminal:
            bar = _bar(self.console, _TrainingBar)
            assert isinstance(bar, _TrainingBar)
            self._bar = bar
            self._row = bar.add_task("Training", total=self._total, completed=self._step, detail=self._place())
            bar.start()
        else:
            begun = f"Training: step {self._step:,} of at most {self._total:,}"
            each = words.count(self._steps_per_epoch, "step")
            compiling = "; the first is compiled before" * (self._step < self._total)
            print_line(self.console, f"{begun}, {each} an epoch{compiling}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif kind is None:
            print_line(self.console, self._line())

    def update(self, step: int, *, loss: float | None = None, examples_per_second: float | None = None) -> None:
        """`step` updates are done; a number left out keeps its last value."""
        if self._paced_from is None and step > self._start:
            self._paced_from = step, self._clock()
        self._step = step
        self._loss = self._loss if loss is None else loss
        self._speed = self._speed if examples_per_second is None else examples_per_second
        if self._bar is not None:
            self._refresh()
        elif self._pace.due():
            print_line(self.console, self._line())

    def validation(self, metrics: Mapping[str, float], best: bool) -> None:
        """One validation.

        Args:
          metrics: of which the one that chooses and HR@20 are shown.
          best: whether it is the best of the run so far.
        """
        value = metrics.get(SELECTION_METRIC, math.nan)
        self._best = value if best else self._best
        standing = "best so far" if best else "not the best" if self._best is None else f"best {self._best:.4f}"
        recall = f", HR@20 {metrics['hr@20']:.4f}" if "hr@20" in metrics else ""
        told = f"valid {words.label(SELECTION_METRIC)} {value:.4f}"
        self._validation = f"{told} ({standing})"
        if self._bar is not None:
            self._refresh()
        else:
            print_line(
                self.console,
                f"{self._place()}: {told}{recall}, {standing}{self._loss_text(', ')}",
            )

    def stopped(self, why: str) -> None:
        """Training has ended before its last step."""
        self._total = self._step
        self.note(why)
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, total=self._total)
            self._refresh()

    def note(self, text: str) -> None:
        """A line that stays, above the bar: a checkpoint saved."""
        print_line(self.console if self._bar is None else self._bar.console, text)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """A `task` inside training (a validation), under the same bar; gone when it ends."""
        if self._bar is not None:
            with _task_in(self._bar, description, total, keep=False) as handle:
                yield handle
        else:
            with _plain_task(self.console, description, total, self._interval, self._clock) as handle:
                yield handle

    def _refresh(self) -> None:
        assert self._bar is not None
        assert self._row is not None
        parts = [self._loss_text(), self._speed_text(), self._validation]
        self._bar.status = Text("  " + "  ·  ".join(part for part in parts if part), style="dim", overflow="ellipsis")
        self._bar.update(self._row, completed=self._step, detail=f"{self._place()}, ≤ {self._left()} left")

    def _place(self) -> str:
        epoch = self._step / self._steps_per_epoch
        return (
            f"step {self._step:,}/{self._total:,}, epoch {epoch:.1f}/{round(self._total / self._steps_per_epoch, 1):g}"
        )

    def _left(self) -> str:
        """The time to the last step at the average pace, validation included, since the first update: before it,
        programs are compiled."""
        if self._paced_from is None or self._step <= self._paced_from[0]:
            return duration(math.nan)
        step, began = self._paced_from
        return duration((self._clock() - began) / (self._step - step) * max(0, self._total - self._step))

    def _loss_text(self, before: str = "") -> str:
        return "" if self._loss is None else f"{before}loss {self._loss:.4f}"

    def _speed_text(self) -> str:
        return "" if self._speed is None else f"{self._speed:,.0f} examples/s"

    def _line(self) -> str:
        parts = [self._place(), self._loss_text(), self._speed_text(), self._validation, f"at most {self._left()} left"]
        return ", ".join(part for part in parts if part)
