"""Processes that run ahead of each other stop after the same step, however their threads take turns."""

import random
import threading
from types import SimpleNamespace

import pytest

from spectran_jax.training.consensus import StopVote

AHEAD = 3
"""Dispatches that a process may be ahead of the slowest: a device's queue, whose collectives need them all."""


class Blocked(Exception):
    """A process waits for the others' threads."""


class Cluster:
    """One of `count` processes, which share a store of what was told."""

    alone = False

    def __init__(self, store, index, count):
        self.store, self.index, self.count, self.on_news = store, index, count, []

    def tell(self, key, value):
        return self.store.setdefault(key, value) is value

    def read_all(self, folder):
        return {key[len(folder) + 1 :]: value for key, value in self.store.items() if key.startswith(f"{folder}/")}


class Process:
    """A training loop, one act of its two threads at a time."""

    def __init__(self, store, index, count, steps_at):
        self.cluster = Cluster(store, index, count)
        self.stop = SimpleNamespace(deferred=True, requested=None)
        self.vote = StopVote(self.cluster, self.stop, steps_at(0))
        self.steps_at, self.step, self.asks, self.reason = steps_at, 0, False, None

    def train(self):
        """Hands the next steps to the devices, or asks whether to stop."""
        if self.asks:
            try:
                self.reason = self.vote.reached(self.step, self.steps_at(self.step))
            except Blocked:
                return
        else:
            self.step += self.steps_at(self.step)
        self.asks = not self.asks

    def hear(self):
        for listener in self.cluster.on_news:
            listener(self.cluster.read_all("news"))


@pytest.fixture(autouse=True)
def _blocked(monkeypatch):
    """A wait gives way to other acts instead of holding the only thread."""

    def wait(self, timeout=None):
        raise Blocked

    monkeypatch.setattr(threading.Condition, "wait", wait)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("count", [2, 4])
def test_all_stop_after_the_same_step(count, size):
    for seed in range(300):
        rng, store = random.Random(seed), {}
        processes = [Process(store, index, count, lambda step: size) for index in range(count)]
        signalled = rng.sample(range(count), rng.choice([1, 1, 2]))
        at = rng.randrange(200)
        for turn in range(5000):
            if turn == at:
                for index in signalled:
                    processes[index].stop.requested = "SIGTERM"
            going = [p for p in processes if p.reason is None]
            if not going:
                break
            process = rng.choice(processes)
            if rng.random() < 0.5:
                process.hear()
            elif process.reason is None and (
                process.asks or process.step < min(p.step for p in processes) + AHEAD * size
            ):
                process.train()
        assert len({process.step for process in processes}) == 1, (seed, [process.step for process in processes])
        assert {process.reason for process in processes} <= {f"SIGTERM on process {index}" for index in signalled}


def test_nobody_stops_unasked():
    store = {}
    process, other = (Process(store, index, 2, lambda step: 1) for index in range(2))
    for _ in range(50):
        for each in (process, other):
            each.train()
            each.hear()
    assert process.reason is other.reason is None
    assert process.step == other.step == 25
