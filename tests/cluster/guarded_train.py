"""`experiments.train`, where no step and no item table may compare a host's values with the others'; run by
test_faults.py.

`jax.device_put` onto devices of several processes does, each time: all wait for one another, and what it reads back is
refused on accelerators, where the loop forbids transfers that it did not ask for. CPU devices let it pass.
"""

import functools
import runpy
from unittest import mock

from jax.experimental import multihost_utils

from spectran_jax.training.engine import Run
from spectran_jax.training.item_table import TableBuilder


def apart(method):
    @functools.wraps(method)
    def guarded(*args):
        told = AssertionError("values of the hosts are compared")
        with mock.patch.object(multihost_utils, "assert_equal", side_effect=told):
            return method(*args)

    return guarded


if __name__ == "__main__":
    TableBuilder.__call__ = apart(TableBuilder.__call__)
    Run.dispatch = apart(Run.dispatch)
    runpy.run_module("experiments.train", run_name="__main__")
