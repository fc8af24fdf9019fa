"""The performance bars of the library, each measured as one row: `python -m experiments.benchmark`.

A bar compares a figure of ours with another one (a peer, the machine's own rate, the same work on less data) and
states the limit that the ratio must keep. `rows` holds what all of them share; the other files register the bars.
"""

from spectran_jax.benchmarks.report import benchmark
from spectran_jax.benchmarks.rows import Settings

__all__ = ["Settings", "benchmark"]
