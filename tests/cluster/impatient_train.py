"""`experiments.train` that gives a network file system two seconds and not twenty; run by test_start.py."""

import runpy

from spectran_jax.training import consensus

if __name__ == "__main__":
    consensus._SHARED_SECONDS = 2.0
    runpy.run_module("experiments.train", run_name="__main__")
