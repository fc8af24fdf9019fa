"""A run that is killed, stopped or damaged ends where the uninterrupted one does, to the last bit."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPO, command, cut_short, without_report

from spectran_jax.benchmarks.local_run import latest_step
from spectran_jax.config import Config
from spectran_jax.errors import Interrupted
from spectran_jax.training.consensus import StopVote
from spectran_jax.training.run import train_and_report

FLAGS = {"epochs": 12, "eval_every": 3, "checkpoint_every": 3, "patience": 0, "semantic_scale": 0.3}
ENDLESS = {"epochs": 500}  # until a signal comes, however fast the machine is
VOLATILE = {"examples_per_second", "seconds"}


def start(flags: dict, workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command("train", {**flags, "workdir": workdir}),
        cwd=REPO,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen, workdir: Path, after: int) -> int:
    """Returns once a checkpoint of a later step than `after` is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (step := latest_step(workdir)) > after:
            return step
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")
        time.sleep(0.005)
    raise AssertionError("no checkpoint within two minutes")


def outcome(workdir: Path) -> dict:
    """metrics.json and metrics.jsonl without what is measured by the clock."""
    metrics = json.loads((workdir / "metrics.json").read_text())
    metrics["train"] = {k: v for k, v in metrics["train"].items() if k not in VOLATILE}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {"metrics": metrics, "lines": [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]}


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return {**tiny_flags, **FLAGS}


def train_here(flags: dict, workdir: Path) -> None:
    """The same run in this process, without its page."""
    with without_report():
        train_and_report(Config().replace(**flags), workdir)


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train_here(flags, workdir)
    return outcome(workdir)


def test_killed_told_to_stop_and_damaged(rng, flags, uninterrupted, tmp_path, tmp_path_factory, caplog, capsys):
    """One run: killed at two random points, stopped by each signal, and its newest checkpoint damaged."""
    step = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process = start(flags | ENDLESS, tmp_path)
        try:
            step = wait_for_checkpoint(process, tmp_path, after=step)
            time.sleep(rng.random() * 0.05)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 75, stderr
            assert "Traceback" not in stderr
            assert f"{number.name}: saved step" in stderr
    assert not (tmp_path / "metrics.json").exists()
    whole = uninterrupted["metrics"]["train"]
    if (reached := latest_step(tmp_path)) >= whole["steps"]:
        flags = {**flags, "epochs": reached * round(whole["epochs"]) // whole["steps"] + 1}
        train_here(flags, other := tmp_path_factory.mktemp("longer"))
        uninterrupted = outcome(other)
    cut_short(tmp_path)
    train_here(flags, tmp_path)
    assert "is damaged and is skipped" in caplog.text
    assert outcome(tmp_path) == uninterrupted

    # It is finished, and not run again.
    before = (tmp_path / "metrics.json").stat().st_mtime_ns
    train_here(flags, tmp_path)
    assert "ndcg@10" in capsys.readouterr().out.lower()
    assert (tmp_path / "metrics.json").stat().st_mtime_ns == before


def test_a_longer_run_goes_on_from_a_shorter_one(flags, uninterrupted, tmp_path):
    """Also where the shorter one ended between two validations."""
    train_here({**flags, "epochs": 4}, tmp_path)
    train_here(flags, tmp_path)
    assert outcome(tmp_path)["metrics"] == uninterrupted["metrics"]


def test_stopped_where_a_shorter_run_ends(flags, tmp_path, monkeypatch):
    """Nothing is left to train, and all to validate: it ends as the run that was that short from the start."""
    short = {**flags, "max_steps": 2, "checkpoint_every": 1000}
    train_here(short, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(StopVote, "reached", lambda self, step, following: "SIGTERM" if step == 2 else None)
        with pytest.raises(Interrupted, match="saved step 2"):
            train_here({**short, "max_steps": 0}, tmp_path / "stopped")
    train_here(short, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped")["metrics"] == outcome(tmp_path / "straight")["metrics"]
    kinds = [[line["kind"] for line in outcome(tmp_path / name)["lines"]] for name in ("stopped", "straight")]
    assert "valid" in kinds[0]
    assert kinds[0].count("valid") == kinds[1].count("valid")
