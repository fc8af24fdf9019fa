"""`experiments.train`, whose process 1 stands still where it asks for its fourth batch; run by test_standstill.py."""

import runpy
import threading

import jax

from spectran_jax.data.pipeline import TrainIterator

following, taken = TrainIterator.__next__, 0


def hang(batches):
    global taken
    taken += 1
    if jax.process_index() == 1 and taken == 4:
        threading.Event().wait()
    return following(batches)


if __name__ == "__main__":
    TrainIterator.__next__ = hang
    runpy.run_module("experiments.train", run_name="__main__")
