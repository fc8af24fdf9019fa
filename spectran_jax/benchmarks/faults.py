"""The bar of faults: a run of several processes that is crashed again and again ends as one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectran_jax.benchmarks.local_run import POLL_SECONDS, LocalRun, latest_step, started
from spectran_jax.benchmarks.rows import Measured, Settings, bar
from spectran_jax.benchmarks.sessions import dataset_config
from spectran_jax.errors import Interrupted, RunError
from spectran_jax.writing import write_json

CRASHES = 20
PROCESSES, DEVICES = 4, 2
STEPS_BETWEEN = 12
"""At most, from the checkpoint that a start finds: 20 of them leave some of the 204 steps for the end."""
NOTICE_SECONDS = 60
"""In which the others must have left."""
PATIENCE_SECONDS = 1800
"""For all else: a busy machine is slow, not broken."""


class Crash(NamedTuple):
    """What was done to a run."""

    of_all: bool
    """Whether all processes were killed at once, and not one of them."""
    in_save: bool
    """Whether a checkpoint was being written just before."""


@bar(
    "faults",
    f"Largest relative difference of a loss or a validation NDCG@20 on Office: {PROCESSES} processes x {DEVICES} "
    f"devices that are crashed {CRASHES} times, half of them in a save, against the run that is left alone",
    at_most=1e-4,
    quick=False,
)
def faults(settings: Settings) -> Measured:
    """One process of the four is killed, or all of them at once: in an epoch, in a save, in a validation."""
    folder = settings.workdir / "faults"
    config = dataset_config(settings, "office", batch_size=64, epochs=4, patience=0, dropout=0.1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    alone = {"config": folder / "config.json", "workdir": folder / "alone", "checkpoint_every": 10_000}
    crashed = {**alone, "workdir": folder / "crashed", "checkpoint_every": 1}
    # On as many processes: 200 steps let another order of sums grow to more than a crash may cost.
    with started(folder / "log-alone", PROCESSES, alone, devices=DEVICES) as run:
        _expect(run, [0] * PROCESSES)
    rng = random.Random(0)
    crashes = [crash(folder / f"log-{number}", crashed, rng, in_save=number % 2 == 1) for number in range(CRASHES)]
    with started(folder / "log-end", PROCESSES, crashed, devices=DEVICES) as run:
        _expect(run, [0] * PROCESSES)
    damaged = len(list((folder / "crashed" / "checkpoints").glob("damaged-*")))
    note = (
        f"{len(crashes)} crashes, {sum(c.of_all for c in crashes)} of all processes, {sum(c.in_save for c in crashes)} "
        f"in a save; {damaged} damaged checkpoints found"
    )
    apart = difference(folder / "crashed" / "metrics.jsonl", folder / "alone" / "metrics.jsonl")
    return Measured(apart, note=note, holds=not damaged and sum(c.in_save for c in crashes) == CRASHES // 2)


def crash(folder: Path, flags: dict[str, Any], rng: random.Random, *, in_save: bool) -> Crash:
    """Starts the run, kills one process or all of them after a few steps, and waits for the others.

    Args:
      folder: new; for what the processes print.
      flags: of the run.
      rng: says how many steps, how long after them, and whom.
      in_save: wait for a checkpoint that is being written.

    Raises:
      RunError: the run does not come to a new checkpoint, or the others stay, or leave with another status than 75.
    """
    workdir = flags["workdir"]
    with started(folder, PROCESSES, flags, devices=DEVICES) as run:
        run.wait_for_step(workdir, latest_step(workdir) + rng.randint(1, STEPS_BETWEEN), PATIENCE_SECONDS)
        in_save = in_save and _wait_for_save(run, workdir)
        time.sleep(rng.random() * (0.02 if in_save else 0.3))
        victims = range(PROCESSES) if rng.random() < 0.3 else [rng.randrange(PROCESSES)]
        for victim in victims:
            run.each[victim].kill()
        _expect(
            run,
            [-signal.SIGKILL if index in victims else Interrupted.exit_status for index in range(PROCESSES)],
            NOTICE_SECONDS,
        )
    return Crash(len(victims) > 1, in_save)


def difference(run: Path, reference: Path) -> float:
    """The largest relative difference of two runs' metrics.jsonl, over training losses and validation metrics.

    Raises:
      RunError: where they logged other steps.
    """
    ours, other = (
        {
            (line["kind"], line["step"], name): line[name]
            for line in map(json.loads, path.read_text().splitlines())
            for name in ("loss", "ndcg@20")
            if name in line
        }
        for path in (run, reference)
    )
    if list(ours) != list(other):
        raise RunError(f"{run} and {reference} hold other steps: {list(ours)} and {list(other)}")
    a, b = (np.array(list(values.values())) for values in (ours, other))
    return float(np.max(np.abs(a - b) / np.abs(b)))


def _wait_for_save(run: LocalRun, workdir: Path, seconds: float = PATIENCE_SECONDS) -> bool:
    """Returns once a checkpoint is being written: True, or False where none is within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(process.poll() is None for process in run.each):
        if any("tmp" in path.name for path in (workdir / "checkpoints" / "latest").glob("*")):
            return True
        time.sleep(POLL_SECONDS / 5)
    return False


def _expect(run: LocalRun, statuses: list[int], seconds: float = PATIENCE_SECONDS) -> None:
    try:
        found = run.wait(seconds)
    except subprocess.TimeoutExpired:
        found = [process.poll() for process in run.each]  # type: ignore[misc]
    for index, (status, expected) in enumerate(zip(found, statuses, strict=True)):
        if status != expected:
            left = "is still there" if status is None else f"left with status {status}, not {expected}"
            raise RunError(f"Process {index} {left}: {run.err(index)[-2000:]}")
