"""A run that is killed and stopped on several processes, and goes on with fewer, ends as one that was left alone."""

import json
import random
import signal
import time

import numpy as np
import pytest
from conftest import cut_short, without_report

from spectran_jax.benchmarks.local_run import latest_step, started
from spectran_jax.config import Config
from spectran_jax.errors import Interrupted
from spectran_jax.training.run import train_and_report

FLAGS = {"epochs": 10, "eval_every": 5, "checkpoint_every": 3, "patience": 0, "item_encoder": "svd", "dropout": 0.1}
TEMPORARY = Interrupted.exit_status


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return {**tiny_flags, **FLAGS}


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """Left alone, on the one device of this process."""
    folder = tmp_path_factory.mktemp("alone")
    with without_report():
        train_and_report(Config().replace(**{**flags, "checkpoint_every": 1000}), folder)
    return folder


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_killed_stopped_and_restarted_on_fewer_processes(alone, flags, tmp_path):
    workdir, rng = tmp_path / "run", random.Random(time.time_ns())
    flags = {**flags, "workdir": workdir}
    # A process among many, and the coordinator: the others notice, say so and ask to be started again.
    for count, victim in ((4, 2), (2, 0)):
        before = latest_step(workdir)
        with started(tmp_path / f"{count}-{victim}", count, flags) as run:
            run.wait_for_step(workdir, before + 1)
            time.sleep(rng.random() * 0.3)  # wherever that is, in a save or not
            run.each[victim].kill()
            statuses = run.wait(60)
            assert statuses.pop(victim) == -signal.SIGKILL
            assert statuses == [TEMPORARY] * (count - 1), [run.err(index)[-1000:] for index in range(count)]
            for index in set(range(count)) - {victim}:
                # XLA may log its own end after ours where the coordinator is gone.
                told = [line for line in run.err(index).splitlines() if line.startswith("error: ")]
                assert f"rocess {victim} of {count}" in "".join(told[-1:]), run.err(index)
                assert "Traceback" not in run.err(index)
                assert not run.out(index)
                if index:
                    assert len(run.err(index).splitlines()) == 1 or victim == 0, run.err(index)
    # A newest checkpoint that can't be read: it is put aside, and the next start takes the one before.
    step = latest_step(workdir)
    cut_short(workdir)
    with started(tmp_path / "damaged", 2, flags) as run:
        assert run.wait() == [TEMPORARY] * 2, [run.err(index)[-1000:] for index in range(2)]
        for index in range(2):
            assert f"{step} is damaged; start again." in run.last_line(index), run.err(index)
    assert [path.name for path in (workdir / "checkpoints").glob("damaged-*")] == [f"damaged-latest-{step}"]
    # A preemption notice on one of them: all save one step.
    before = latest_step(workdir)
    with started(tmp_path / "stopped", 4, flags, devices=1) as run:
        run.wait_for_step(workdir, before + 1)
        run.each[1].send_signal(signal.SIGTERM)
        assert run.wait() == [TEMPORARY] * 4, [run.err(index)[-1000:] for index in range(4)]
        for index in range(4):
            assert f"SIGTERM on process 1: saved step {latest_step(workdir)};" in run.last_line(index), run.err(index)
    assert not (workdir / "metrics.json").exists()
    with started(tmp_path / "end", 1, {**flags, "mesh": "data:1,model:2"}) as run:
        assert run.wait() == [0], run.err(0)
        assert "is damaged" not in run.err(0)
    assert len(list((workdir / "checkpoints").glob("damaged-*"))) == 1

    mine, theirs = lines(workdir), lines(alone)
    assert [(line["kind"], line["step"]) for line in mine] == [(line["kind"], line["step"]) for line in theirs]
    for name in ("loss", "ndcg@20"):
        np.testing.assert_allclose(
            [line[name] for line in mine if name in line], [line[name] for line in theirs if name in line], rtol=1e-4
        )
    mine, theirs = (json.loads((path / "metrics.json").read_text()) for path in (workdir, alone))
    assert mine["protocol"] == theirs["protocol"]
    for name, value in theirs["test"].items():
        np.testing.assert_allclose(mine["test"][name], value, rtol=1e-3, err_msg=name)
