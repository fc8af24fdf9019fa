"""Many runs as processes of their own, some at a time: what every experiment on more than one run stands on.

A job is a run of `experiments.train` in a folder of its own. A job that is finished is not run again, and one that was
cut off resumes from its checkpoint, so that an experiment survives whatever stops it: the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
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
LAUNCH = Path(__file__).with_name("launch.py")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""XLA takes a step's temporary memory from the system anew each time; in pages of 2 MiB the kernel has less to do."""


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
            refuse_other_run_of_study(workdir / "runs" / job.name, job.config, job.name)
        found = {job.name: finished(job, workdir / "runs" / job.name) for job in jobs}
        done = {name: outcome for name, outcome in found.items() if outcome is not None}
        todo = [job for job in jobs if job.name not in done]
        if todo:
            with Board(description, len(jobs), len(done), parallel) as board, _Children(parallel) as children:
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
    children: _Children,
    board: Board,
    stop: StopRequest,
    command: Callable[[Job, Path], list[str]],
) -> dict[str, Outcome]:
    queue = deque((job, 1) for job in todo)
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
            children.start(job, attempt, folder, command(job, folder))
            board.started(job.name)
        for child in children.ended():
            if child.status == Interrupted.exit_status and child.attempt < ATTEMPTS:
                queue.append((child.job, child.attempt + 1))
                board.again(child.job.name)
                continue
            outcome = finished(child.job, child.folder, checked=True) if child.status == 0 else None
            if outcome is None:
                outcome = Outcome(child.job.name, child.folder, failure=_failure(child), status=child.status)
            done[child.job.name] = outcome
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


@dataclasses.dataclass
class _Child:
    job: Job
    attempt: int
    folder: Path
    process: subprocess.Popen[bytes]
    cores: frozenset[int]
    said_before: int
    """Bytes of log.txt from earlier attempts."""
    status: int = 0


class _Children:
    """The processes under way, each on cores of its own."""

    def __init__(self, parallel: int) -> None:
        self.running: list[_Child] = []
        self._shares = core_shares(parallel)
        self._parallel = parallel

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves no child behind, whatever happened: those that are still there did not heed a request to leave."""
        for child in self.running:
            child.process.kill()
            child.process.wait()

    @property
    def free(self) -> int:
        """Children that may be started now."""
        return self._parallel - len(self.running)

    def start(self, job: Job, attempt: int, folder: Path, command: list[str]) -> None:
        """Starts a job on the share of the cores that the fewest running children have."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "job.json", job.config.to_dict())
        in_use = [child.cores for child in self.running]
        cores = min(self._shares, key=in_use.count)
        launch = [sys.executable, "-P", "-S", str(LAUNCH), str(os.getpid()), ",".join(map(str, sorted(cores)))]
        with (folder / "log.txt").open("ab") as log:
            said_before = log.tell()
            process = subprocess.Popen(
                [*launch, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_defaults(self._parallel) | os.environ,
                start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone, which passes it on
            )
        self.running.append(_Child(job, attempt, folder, process, cores, said_before))

    def ended(self) -> list[_Child]:
        """The children that have ended since the last call."""
        over = [child for child in self.running if child.process.poll() is not None]
        self.running = [child for child in self.running if child not in over]  # asked twice, one could be in neither
        for child in over:
            child.status = child.process.returncode
        return over

    def leave(self) -> None:
        """Asks all children to save and leave, and waits for them."""
        for child in self.running:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        for child in self.running:
            child.process.wait()
        self.running = []


def child_defaults(parallel: int) -> dict[str, str]:
    """Variables of a child's environment where the user sets none."""
    # On a GPU the first of several would otherwise take three quarters of its memory for itself.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if parallel > 1 else {}
    return {"GLIBC_TUNABLES": HUGE_PAGES} | shared


def core_shares(parallel: int) -> list[frozenset[int]]:
    """The cores of this process in `parallel` parts of about one size, each core in one; one core each where short."""
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()]
    cores = sorted(os.sched_getaffinity(0))
    parts = min(parallel, len(cores))
    return [frozenset(cores[part::parts]) for part in range(parts)]


def _failure(child: _Child) -> str:
    """Why a run failed: the last line of its log, without the label that commands put before it."""
    if child.status < 0:
        name = signal.Signals(-child.status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"Ended by {name}{hint}; see {child.folder / 'log.txt'}."
    said = (child.folder / "log.txt").read_bytes()[child.said_before :]
    lines = said.decode("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if child.status == 0:
        return f"It ended without results of its configuration; see {child.folder / 'log.txt'}."
    return last.removeprefix("error: ") or f"It ended with status {child.status} and said nothing."


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
