"""Writes the top items of a trained run as JSONL."""

import sys

from absl import flags

from spectran_jax.errors import InputError
from spectran_jax.flags import define_cold_scale, define_files_of_run, define_path, run

SYNOPSIS = """
Writes the k best items for each user of a trained run, or for histories of your own, one JSON object a line:
{"user_id": ..., "items": [...], "scores": [...]}, best first, in your own ids.

  python -m experiments.recommend --workdir=runs/demo --k=10 --output=top.jsonl
  python -m experiments.recommend --workdir=runs/demo --k=10 --histories=new.jsonl --output=top.jsonl
"""

_WORKDIR = define_path("workdir", "Folder of a trained run.")
_K = flags.DEFINE_integer("k", 10, "Items for each user; fewer where --filter_seen leaves no more.")
_HISTORIES = define_path(
    "histories",
    'Histories of your own: JSONL of {"user_id": ..., "items": [oldest, ..., newest]}, or a TSV, CSV or Parquet file '
    "with user_id, item_id and timestamp or position. The users of the run if empty.",
)
_FILES = define_files_of_run()
_COLD_SCALE = define_cold_scale()
_UNKNOWN_ITEMS = flags.DEFINE_enum(
    "unknown_items", "error", ["error", "drop"], "What to do with items of --histories that the run does not know."
)
_UNTIL = flags.DEFINE_enum(
    "until",
    "test",
    ["test", "now"],
    "Histories of the run's own users: up to the test target, as in the evaluation, or all that is known now.",
)
_FILTER_SEEN = flags.DEFINE_bool(
    "filter_seen",
    None,
    "Leave out the items of the history, which may leave a list shorter than --k; as the run did if not given.",
)
_RECALL = flags.DEFINE_float(
    "recall",
    0.0,
    "Expected share of the true k best that suffices, up to 1, for a quicker search where the hardware has one (TPU); "
    "0 is exact.",
)
_OUTPUT = define_path("output", "JSONL file to write; recommendations.jsonl in --workdir if empty.")


def main() -> None:
    """Runs the experiment that the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name the run: --workdir=DIR.")
    if _HISTORIES.value and flags.FLAGS["until"].present:
        raise InputError("--until goes with the run's own users, --histories brings others: give one of the two.")
    output = _OUTPUT.value or _WORKDIR.value / "recommendations.jsonl"
    from spectran_jax.recommend import write_recommendations
    from spectran_jax.report import words
    from spectran_jax.writing import is_stdout

    count = write_recommendations(
        _WORKDIR.value,
        output,
        k=_K.value,
        histories=_HISTORIES.value,
        files={name: flag.value for name, flag in _FILES.items() if flag.value},
        cold_scale=_COLD_SCALE.value,
        until=_UNTIL.value,
        filter_seen=_FILTER_SEEN.value,
        unknown_items=_UNKNOWN_ITEMS.value,
        recall=_RECALL.value,
    )
    print(f"{words.count(count, 'user')}: {output}", file=sys.stderr if is_stdout(output) else sys.stdout)


if __name__ == "__main__":
    run(main, SYNOPSIS)
