"""Reduces interactions that outgrow one machine to a file that training reads, with Apache Beam."""

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import run

SYNOPSIS = """
Reads many files of interactions with Apache Beam, leaves out what no model needs, and writes one Parquet file for
--dataset=files: items that are not in the catalogue, interactions said twice, users and items outside a k-core, all
but the newest interactions of each user. In this process and its memory, or on whatever runner Beam has. Needs Beam: in
the repository, pip install '.[beam]'.

  python -m experiments.prepare --interactions='logs/part-*.tsv' --items=items.jsonl --unknown_items=drop --k_core=5 \\
      --newest=200 --output=interactions.parquet
  python -m experiments.prepare --interactions='gs://logs/*.parquet' --output=gs://data/interactions.parquet \\
      --beam=--runner=DataflowRunner --beam=--project=P --beam=--region=R --beam=--temp_location=gs://data/tmp \\
      --beam=--sdk_container_image=IMAGE
  python -m experiments.train --dataset=files --interactions=interactions.parquet --items=items.jsonl --k_core=1

The last, with --k_core=1, leaves items without interactions out of the catalogue. What single files may hold, and how
times and ties order a history, is as for --dataset=files; a worker reads a file whole, and has its rows in memory. On a
cluster, workers need this package (an image with it), and output, inputs and workers a file system in common; for
gs:// and Dataflow, pip install 'apache-beam[gcp]'.
"""

_INTERACTIONS = flags.DEFINE_list(
    "interactions",
    [],
    "Patterns of files (TSV, CSV, JSONL, Parquet, .gz) with user_id, item_id and timestamp (Unix seconds) or position.",
)
_ITEMS = flags.DEFINE_list(
    "items", [], "Patterns of the files of items (JSONL, CSV, Parquet); every item counts as known if empty."
)
_OUTPUT = flags.DEFINE_string("output", "", "Parquet file to write.")
_K_CORE = flags.DEFINE_integer(
    "k_core", 0, "Keep users and items with at least this many interactions, repeatedly; 0 keeps all.", lower_bound=0
)
_NEWEST = flags.DEFINE_integer(
    "newest",
    0,
    "Keep this many interactions of each user, the newest, after the k-core; 0 keeps all. Training with "
    "--split=leave_one_out reads the newest --max_length + 3; --filter_seen and slices by length see what is kept.",
    lower_bound=0,
)
_UNKNOWN_ITEMS = flags.DEFINE_enum(
    "unknown_items", "error", ["error", "drop"], "What to do with interactions that name items missing from --items."
)
_DUPLICATES = flags.DEFINE_enum(
    "duplicates",
    "keep",
    ["keep", "drop"],
    "What to do with interactions of the same user, item and time (and position): drop takes each of them once, before "
    "the k-core. Training can't any more: what is written has a position of its own for each.",
)
_BEAM = flags.DEFINE_multi_string("beam", [], "An option of Beam's pipeline, such as --runner=FlinkRunner; repeatable.")


def main() -> None:
    """Runs the reduction that the flags describe."""
    for name, value in (("interactions", _INTERACTIONS.value), ("output", _OUTPUT.value)):
        if not value:
            raise InputError(f"--{name} is missing. See --help.")
    if _UNKNOWN_ITEMS.value == "drop" and not _ITEMS.value:
        raise InputError("--unknown_items=drop needs --items: without a catalogue every item is known.")
    from spectran_jax.data.reduction import Filters, reduce_interactions
    from spectran_jax.progress import print_line, stderr_console
    from spectran_jax.report.words import reduced

    console = stderr_console()
    counts = reduce_interactions(
        _INTERACTIONS.value,
        _ITEMS.value,
        _OUTPUT.value,
        Filters(_K_CORE.value, _NEWEST.value, _UNKNOWN_ITEMS.value, _DUPLICATES.value),
        options=_BEAM.value,
        progress=lambda line: print_line(console, line),
    )
    print(*reduced(counts), f"output: {_OUTPUT.value}", sep="\n")


if __name__ == "__main__":
    run(main, SYNOPSIS)
