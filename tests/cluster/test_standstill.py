"""A process that lives and gets no further is noticed by its own thread, and all leave."""

import contextlib
import errno
import os
import socket
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from spectran_jax.benchmarks.local_run import started
from spectran_jax.errors import Interrupted
from spectran_jax.training import phases as phases_module
from spectran_jax.training import standstill
from spectran_jax.training.engine import Record, Run
from spectran_jax.training.phases import Phases
from spectran_jax.training.standstill import Watchdog, place_of


def test_one_of_two_processes_hangs(tiny_flags, tmp_path):
    flags = {**tiny_flags, "item_encoder": "id", "hang_timeout": 4, "workdir": tmp_path / "run"}
    program = [str(Path(__file__).with_name("hanging_train.py"))]
    with started(tmp_path / "log", 2, flags, devices=1, program=program) as run:
        assert run.wait(120) == [Interrupted.exit_status] * 2, [run.err(index) for index in range(2)]
        message = f"Process 1 of 2 on {socket.gethostname()} got no further for 4 s, in the phase 'input' at "
        assert f"error: {message}" in run.last_line(1)
        assert f"error: Process 1 left: {message}" in run.last_line(0)
        assert "--hang_timeout" in run.last_line(0)
        assert "Traceback" not in run.err(0) + run.err(1)


class Ended(Exception):
    pass


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(phases_module.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def cluster():
    def fail(error):
        raise Ended(str(error))

    return types.SimpleNamespace(index=1, count=2, alone=False, hang_timeout=10, on_news=[], fail=fail)


def look(cluster):
    for listener in cluster.on_news:
        listener({})


def test_only_what_stands_still_between_the_first_step_and_the_last(cluster, clock):
    phases = Phases()
    with Watchdog(cluster, phases) as watchdog:
        with phases("step"):
            clock.now += 1000  # compiles
            look(cluster)
            watchdog.begin(np.ones(()))
        clock.now += 9
        look(cluster)
        with phases("input"):
            clock.now += 9
            look(cluster)
        with phases("evaluation"):
            report = phases.moving(lambda done: None)
            for batch in range(5):
                clock.now += 9
                look(cluster)
                report(batch)
            clock.now += 14
            look(cluster)
            clock.now += 2
            with pytest.raises(
                Ended, match=r"1 of 2 on \S+ got no further for 10 s, in the phase 'evaluation' at .*\.py:"
            ):
                look(cluster)
    clock.now += 1000
    look(cluster)


def test_a_save_may_take_long_as_long_as_its_files_change(cluster, clock, tmp_path):
    cluster.hang_timeout = 0.03
    phases = Phases()

    def save(*_):
        for part in range(4):
            clock.now += 4  # with the grace, 5.03 s are allowed
            look(cluster)
            for size in range(6000):
                if not phases.standing()[0]:
                    break
                (tmp_path / "checkpoints" / f"part {part}").write_text("x" * size)
                time.sleep(0.01)
        with pytest.raises(Ended, match="in the phase 'checkpoint'"):
            stand()

    def stand():
        for _ in range(6000):  # the last change may be seen by now, or not yet
            clock.now += 5.1
            look(cluster)
            time.sleep(0.01)

    (tmp_path / "checkpoints").mkdir()
    setup, checkpoints = types.SimpleNamespace(inputs_digest="d"), types.SimpleNamespace(save=save)
    run = Run(setup, cluster, tmp_path, phases, *[None] * 5, checkpoints, None, None, step=1, record=Record())
    with Watchdog(cluster, phases) as watchdog:
        watchdog.begin(np.ones(()))
        run.save()


@pytest.mark.parametrize(("fault", "sizes"), [(errno.ENOENT, {}), (errno.ESTALE, None)])
def test_a_server_that_is_away_is_no_change(tmp_path, monkeypatch, fault, sizes):
    (tmp_path / "part").write_text("x")
    (tmp_path / "folder").mkdir()
    assert list(standstill._sizes(tmp_path).values()) == [1]

    def stat(*_, **__):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(standstill.os, "stat", stat)
    assert standstill._sizes(tmp_path) == sizes


@pytest.mark.parametrize(("change", "looks"), [({}, True), ({"alone": True}, False), ({"hang_timeout": 0}, False)])
def test_nobody_looks_where_nobody_waits(cluster, clock, change, looks):
    vars(cluster).update(change)
    with Watchdog(cluster, Phases()) as watchdog:
        watchdog.begin(np.ones(()))
        assert len(cluster.on_news) == looks
        clock.now += 1000
        with pytest.raises(Ended) if looks else contextlib.nullcontext():
            look(cluster)


def test_the_place_of_a_thread():
    ready, done = threading.Event(), threading.Event()

    def stand_here():
        ready.set()
        done.wait()

    thread = threading.Thread(target=stand_here)
    thread.start()
    ready.wait()
    assert thread.ident is not None
    assert place_of(thread.ident).endswith("(wait)")
    done.set()
    thread.join()
    assert place_of(thread.ident) == "an unknown place"
