"""A run that is killed and stopped on several processes, and goes on with fewer, ends as one that was left alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, cut_short, without_report

from spectran_jax.benchmarks.local_run import latest_step, started
from spectran_jax.config import Config
from spectran_jax.errors import Interrupted
from spectran_jax.training.run import train_and_report

FLAGS = {"epochs": 10, "eval_every": 5, "checkpoint_every": 3, "patience": 0, "item_encoder": "svd", "dropout": 0.1}
ENDLESS = {"epochs": 500}  # until a signal comes, however fast the machine is
GUARDED = [str(Path(__file__).with_name("guarded_train.py"))]
TEMPORARY = Interrupted.exit_status


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return {**tiny_flags, **FLAGS}


def left_alone(flags, folder):
    """The folder of a run on the one device of this process."""
    with without_report():
        train_and_report(Config().replace(**{**flags, "checkpoint_every": 1000}), folder)
    return folder


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def launched_and_told(flags, number, *, processes, victim, delay, restarts=0):
    """A signal to one of the processes that launch/local.sh started, some seconds after there is a checkpoint more: its
    exit status, and what all of them told."""
    workdir = flags["workdir"]
    before = latest_step(workdir)
    settings = {"PYTHON": sys.executable, "PROCESSES": str(processes), "DEVICES": "1", "RESTARTS": str(restarts)}
    launcher = subprocess.Popen(
        [REPO / "launch" / "local.sh", *(f"--{name}={value}" for name, value in flags.items())],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while latest_step(workdir) <= before:
            assert launcher.poll() is None, launcher.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint within four minutes"
            time.sleep(0.01)
        each = working_in(workdir)
        assert len(each) == processes, each
        (pid,) = [pid for pid, line in each.items() if f"--process_id={victim} " in f"{line} "]
        time.sleep(delay)  # wherever that is, in a save or not
        os.kill(pid, number)
        _, told = launcher.communicate(timeout=240)
    finally:
        launcher.terminate()
        launcher.wait(timeout=150)
    assert not working_in(workdir)
    return launcher.returncode, told


def errors_of(stderr):
    """The last lines of processes that left; XLA may log its own end after ours."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def working_in(folder):
    """The live processes that train in a folder, with their command lines."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has just left
            line = Path(f"/proc/{name}/cmdline").read_text().replace("\0", " ")
            if f"--workdir={folder} " in line and "--process_id=" in line and "launch.py" not in line:
                found[int(name)] = line
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_stopped_and_restarted_on_fewer_processes(rng, flags, tmp_path):
    workdir = tmp_path / "run"
    endless = {**flags, **ENDLESS, "workdir": workdir}
    # One of many is killed: the others notice, say so and ask to be started again.
    with started(tmp_path / "killed", 4, endless, program=GUARDED) as run:
        run.wait_for_step(workdir, 4)  # the second checkpoint: the newest is damaged below
        time.sleep(rng.random() * 0.3)  # wherever that is, in a save or not
        run.each[2].kill()
        statuses = run.wait(60)
        assert statuses.pop(2) == -signal.SIGKILL
        assert statuses == [TEMPORARY] * 3, [run.err(index)[-1000:] for index in range(4)]
        for index in (0, 1, 3):
            assert "rocess 2 of 4" in errors_of(run.err(index))[-1], run.err(index)
            assert "Traceback" not in run.err(index)
            assert not run.out(index)
            if index:
                assert len(run.err(index).splitlines()) == 1, run.err(index)
    # A newest checkpoint that can't be read: it is put aside, and the launcher's next start takes the one before. Then
    # the coordinator is killed.
    damaged = latest_step(workdir)
    cut_short(workdir)
    status, told = launched_and_told(
        endless, signal.SIGKILL, processes=2, victim=0, delay=rng.random() * 0.2, restarts=1
    )
    assert status == TEMPORARY, told
    errors = errors_of(told)
    first = [line for line in errors if f"{damaged} is damaged; start again." in line]
    last = [line for line in errors if "rocess 0 of 2" in line]
    # Each tells it, and perhaps what it read of another one beside.
    assert len(first) >= 2, told
    assert last, told
    assert first + last == errors, told
    assert "Traceback" not in told
    assert told.count("saved; starting again (1 left)") == 1, told
    assert [path.name for path in (workdir / "checkpoints").glob("damaged-*")] == [f"damaged-latest-{damaged}"]
    # A preemption notice on one process: all save one step, and nobody stays behind.
    status, told = launched_and_told(endless, signal.SIGTERM, processes=4, victim=1, delay=rng.random() * 0.2)
    assert status == TEMPORARY, told
    assert len(errors_of(told)) >= 4, told
    for line in errors_of(told):
        assert f"SIGTERM on process 1: saved step {latest_step(workdir)};" in line, told
    assert not (workdir / "metrics.json").exists()
    whole = left_alone(flags, tmp_path / "alone")
    steps = lines(whole)[-1]["step"]
    if (reached := latest_step(workdir)) >= steps:
        flags = {**flags, "epochs": reached * flags["epochs"] // steps + 1}
        whole = left_alone(flags, tmp_path / "longer")
    with started(tmp_path / "end", 1, {**flags, "workdir": workdir, "mesh": "data:1,model:2"}) as run:
        assert run.wait() == [0], run.err(0)
        assert "is damaged" not in run.err(0)
    assert len(list((workdir / "checkpoints").glob("damaged-*"))) == 1

    mine, theirs = lines(workdir), lines(whole)
    assert [(line["kind"], line["step"]) for line in mine] == [(line["kind"], line["step"]) for line in theirs]
    for name in ("loss", "ndcg@20"):
        np.testing.assert_allclose(
            [line[name] for line in mine if name in line], [line[name] for line in theirs if name in line], rtol=1e-4
        )
    mine, theirs = (json.loads((path / "metrics.json").read_text()) for path in (workdir, whole))
    assert mine["protocol"] == theirs["protocol"]
    for name, value in theirs["test"].items():
        np.testing.assert_allclose(mine["test"][name], value, rtol=1e-3, err_msg=name)
