"""Measures the library's performance bars and says which of them it meets."""

from absl import flags

from spectran_jax.errors import InputError, RunError
from spectran_jax.flags import define_path, run

SYNOPSIS = """
Measures every performance bar of the library as one row: ours, the other, their ratio, the limit, and whether it is
met. Writes benchmark.json (after each row), benchmark.md and plots to --workdir, and ends with status 1 where a row
misses its bar. Sides of a ratio run in turn, and the ratio is the median over their pairs.

  python -m experiments.benchmark --workdir=runs/benchmark
  python -m experiments.benchmark --workdir=runs/benchmark --data=data --peers=bench --peer_python=peer/bin/python
  python -m experiments.benchmark --workdir=runs/benchmark --rows=ranking,softmax_memory --again

Rows that need --data, a peer or a GPU say so where there is none, and don't count as missed. The same command again
goes on where it stopped: rows that are there for this machine, and for the same values of the flags that they read, are
not measured again, and a row without what it needs now stays as it was measured. An idle machine gives the figures
their meaning.

Rows: rectools_beauty, rectools_office, torch_beauty, torch_office (training speed against peers, and quality),
packing_fill, packing_speed, utilisation, loop, scaling_1m, softmax_memory, softmax_gradient, decomposition,
decomposition_memory, ranking, gpu; with --full, or by name, scaling_10m (20 GiB of memory), shared_10m (12 GiB),
quality_sparse, quality_packed, quality_int8, quality_bfloat16, quality_precision (48 short runs), faults (20 crashes
of four processes).
"""

_WORKDIR = define_path("workdir", "Folder of the results; also holds caches and, for a while, data.")
_DATA = define_path(
    "data",
    "Folder of beauty/ and office/, each with interactions.tsv, items.jsonl and embeddings.minilm.npy.",
)
_PEERS = define_path("peers", "Folder of the peers' scripts, peer_rectools.py and torch_spectran.py.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", "", "Python that has the peers' packages (torch, rectools).")
_ROWS = flags.DEFINE_list("rows", [], "Names of the rows to measure, comma-separated; all quick ones if empty.")
_FULL = flags.DEFINE_bool("full", False, "Measure all rows, and the largest sizes.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Pairs that a ratio is the median of.", lower_bound=1)
_AGAIN = flags.DEFINE_bool("again", False, "Measure also the rows that --workdir holds.")


def main() -> None:
    """Runs the benchmark that the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name a folder for the results: --workdir=DIR.")
    for name, value in (("data", _DATA.value), ("peers", _PEERS.value)):
        if value and not value.is_dir():
            raise InputError(f"--{name}={value}: no such folder.")
    from spectran_jax.benchmarks import Settings, benchmark
    from spectran_jax.benchmarks.report import missed, table
    from spectran_jax.machine import describe_machine
    from spectran_jax.report.terminal import print_table

    settings = Settings(
        workdir=_WORKDIR.value,
        data=_DATA.value,
        peers=_PEERS.value,
        peer_python=_PEER_PYTHON.value,
        repeats=_REPEATS.value,
        full=_FULL.value,
    )
    results = benchmark(settings, _ROWS.value, again=_AGAIN.value)
    print_table(table(results))
    print(f"rows: {settings.workdir / 'benchmark.json'}\nMarkdown: {settings.workdir / 'benchmark.md'}")
    names = missed(results, describe_machine())
    if names:
        raise RunError(f"{len(names)} of {len(results)} rows miss their bar: {', '.join(names)}.")


if __name__ == "__main__":
    run(main, SYNOPSIS)
