"""Many runs as processes of their own, some at a time: what every experiment on more than one run stands on.

A job is a run of `experiments.train` in a folder of its own. A job that is finished is not run again, and one that was
cut off resumes from its checkpoint, so that an experiment survives whatever stops it: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spectran_jax.config import FILES, Config
from spectran_jax.errors import InputError, Interrupted
from spectran_jax.metrics import SELECTION_METRIC
from spectran_jax.ranks import Ranks, read_ranks
from spectran_jax.report import words
from spectran_jax.signals import StopRequest
from spectran_jax.studies.board import Board
from spectran_jax.studies.children import Children
from spectran_jax.training.workdir import is_locked, locked, read_metrics, refuse_other_run_of_study
from spectran_jax.writing import write_json

POLL_SECONDS = 0.1
ATTEMPTS = 3
"""Times that a job is started which leaves with 75, i.e. asks to be started again."""
REFUSALS = 2
"""Jobs of one folder that are refused in the same words before the rest of it is not started. One says too little: what
it was refused may be a value of its own, as of a search, or a folder that another process holds."""
FREE_SECONDS = 60.0
"""How long a job waits for a folder that another process holds: a child of a killed experiment that still saves."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to make."""

    name: str
    """Its folder below `workdir/runs`; may have parts, as in `beauty/sasrec/spectran/seed-0`."""
    config: Config
    keep_checkpoints: bool = True
    """Whether checkpoints/ stays when the run is finished. Nothing reads those of a search's trials."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job: its metrics, or why it has none."""

    name: str
    folder: Path
    metrics: dict[str, Any] | None = None
    """The content of metrics.json; None for a run that failed."""
    failure: str = ""
    """Why it failed: the last line of its log, or how it was ended."""
    status: int = 0
    """Exit status of its process: 2 where its input or configuration was refused, negative for a signal."""

    @property
    def ok(self) -> bool:
        """Whether the run came to its end."""
        return self.metrics is not None

    def ranks(self, split: str = "test") -> Ranks:
        """The ranks of each user's target in `valid` or `test`, from ranks.npz; no model is needed."""
        return read_ranks(self.folder / "ranks.npz", split)


def train_command(job: Job, folder: Path) -> list[str]:
    """The command of a job: `experiments.train` on the job.json in its folder."""
    return [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={folder / 'job.json'}",
        f"--workdir={folder}",
        "--num_processes=1",
    ]


def run_jobs(
    jobs: Sequence[Job],
    workdir: Path,
    *,
    parallel: int,
    description: str = "Runs",
    command: Callable[[Job, Path], list[str]] = train_command,
) -> dict[str, Outcome]:
    """Runs every job that is not finished yet, at most `parallel` at a time.

    Each is a child process in `workdir/runs/NAME`, which gets `job.json`, `log.txt` (stdout and stderr of the
    child) and all that a run writes. A child is given its share of the cores, 1 / parallel of them, by its affinity;
    XLA, NumPy and Grain size their thread pools by it. SIGINT and SIGTERM are passed on: children save and leave, and
    so does this function. Children of an experiment that is killed outright are told to save, too (Linux).

    Jobs whose names differ in their last part alone are of one method on one data set. Where `REFUSALS` of them are
    refused their input in the same words, those that wait count as failed with these words.

    Args:
      jobs: with different names.
      workdir: held for this process meanwhile.
      parallel: children at a time, at least 1.
      description: what the progress line calls them.
      command: makes the command line of a job; it must leave a metrics.json of the job's configuration.

    Returns:
      An outcome for each job, by name, in the order of `jobs`. A run that fails is reported, and the others go on.

    Raises:
      InputError: two jobs of one name, a name that leaves the folder, a folder that holds a run of other values, or a
        work directory in use.
      Interrupted: on a signal, when the children have saved.
    """
    _check(jobs, parallel)
    with StopRequest() as stop, locked(workdir):
        stop.deferred = True
        for job in jobs:
            refuse_other_run_of_study(workdir / "runs" / job.name, job.config)
        found = {job.name: finished(job, workdir / "runs" / job.name) for job in jobs}
        done = {name: outcome for name, outcome in found.items() if outcome is not None}
        todo = [job for job in jobs if job.name not in done]
        if todo:
            with Board(description, len(jobs), len(done), parallel) as board, Children(parallel) as children:
                done |= _run_all(todo, workdir / "runs", children, board, stop, command)
        return {job.name: done[job.name] for job in jobs}


def finished(job: Job, folder: Path, *, checked: bool = False) -> Outcome | None:
    """The outcome of a job whose folder holds its results, or None.

    The results must be of this configuration (`Config.same_results`) and newer than every file that it reads; of a
    newer file, the run itself finds out whether its content has changed. Where it just has (`checked`), the results
    count as new from then on, also where the file's time lies in the future.
    """
    path = folder / "metrics.json"
    try:
        metrics = read_metrics(folder)
        if metrics is None or not job.config.same_results(Config.from_dict(metrics["config"])):
            return None
        for split in ("valid", "test"):
            if split in metrics:
                read_ranks(folder / "ranks.npz", split)
        files = filter(None, map(job.config.get, FILES))
        newest = max((Path(file).expanduser().stat().st_mtime_ns for file in files), default=0)
        if checked:
            as_new = max(newest, time.time_ns())
            os.utime(path, ns=(as_new, as_new))
        elif newest > path.stat().st_mtime_ns:
            return None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
    _clear(job, folder)
    return Outcome(job.name, folder, metrics)


def _run_all(
    todo: Sequence[Job],
    runs: Path,
    children: Children,
    board: Board,
    stop: StopRequest,
    command: Callable[[Job, Path], list[str]],
) -> dict[str, Outcome]:
    queue = deque((job, 1) for job in todo)
    under_way: dict[Path, tuple[Job, int]] = {}
    waiting: dict[str, float] = {}
    done: dict[str, Outcome] = {}
    refused: Counter[tuple[Path, str]] = Counter()
    while queue or children.running:
        if stop.requested:
            children.leave()
            raise Interrupted(
                f"Stopped by {stop.requested}, the runs under way are saved; start the same command again to go on."
            )
        for _ in range(min(children.free, len(queue))):
            job, attempt = queue.popleft()
            folder = runs / job.name
            since = waiting.setdefault(job.name, time.monotonic())
            if is_locked(folder) and time.monotonic() - since < FREE_SECONDS:
                queue.append((job, attempt))
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "job.json", job.config.to_dict())
            children.start(folder, command(job, folder))
            under_way[folder] = job, attempt
            board.started(job.name)
        for child in children.ended():
            job, attempt = under_way.pop(child.folder)
            if child.status == Interrupted.exit_status and attempt < ATTEMPTS:
                queue.append((job, attempt + 1))
                board.again(job.name)
                continue
            outcome = finished(job, child.folder, checked=True) if child.status == 0 else None
            if outcome is None:
                nothing = f"It ended without results of its configuration; see {child.folder / 'log.txt'}."
                failure = child.failure() if child.status else nothing
                outcome = Outcome(job.name, child.folder, failure=failure, status=child.status)
            done[job.name] = outcome
            board.finished(outcome.name, outcome.failure, _headline(outcome))
            if outcome.status == InputError.exit_status:
                folder, said = outcome.folder.parent, outcome.failure
                refused[folder, said] += 1
                if refused[folder, said] == REFUSALS:
                    alike = _without(queue, outcome, runs)
                    done |= alike
                    board.not_started(str(folder.relative_to(runs)), len(alike))
        board.refresh()
        time.sleep(POLL_SECONDS)
    return done


def _without(queue: deque[tuple[Job, int]], refused: Outcome, runs: Path) -> dict[str, Outcome]:
    """Takes the jobs beside a refused one out of the queue; its failure is theirs."""
    beside = [waits for waits in queue if (runs / waits[0].name).parent == refused.folder.parent]
    for waits in beside:
        queue.remove(waits)
    names = [job.name for job, _ in beside]
    return {name: dataclasses.replace(refused, name=name, folder=runs / name) for name in names}


def _headline(outcome: Outcome) -> str:
    """The metric that people want to see go by."""
    for split in ("test", "valid"):
        values = (outcome.metrics or {}).get(split)
        if values and SELECTION_METRIC in values:
            return f"{split} {words.label(SELECTION_METRIC)} {values[SELECTION_METRIC]:.4f}"
    return ""


def _clear(job: Job, folder: Path) -> None:
    if not job.keep_checkpoints:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _check(jobs: Sequence[Job], parallel: int) -> None:
    if parallel < 1:
        raise InputError(f"--jobs must be at least 1, got {parallel}.")
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two runs would share the folder runs/{twice[0]}; give each its own name.")
    for name in names:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise InputError(f"A run can't be named {name!r}: its name is a folder below --workdir.")
