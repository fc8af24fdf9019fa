"""Writes a trained run for serving: item vectors, ids, and the user model as a StableHLO program."""

from spectran_jax.errors import InputError
from spectran_jax.flags import define_cold_scale, define_files_of_run, define_path, run

SYNOPSIS = """
Writes what serving needs of a trained run to a folder: vectors.npy and item_ids.jsonl for a vector index,
user_states.stablehlo, which turns histories into user states with JAX alone (CPU, GPU and TPU), and export.json, which
says what it takes. A state's inner products with the vectors are the scores.

With --new_items, items that came after the run are given vectors from their text, without training: the last rows.

  python -m experiments.export --workdir=runs/mine --output=serving
  python -m experiments.export --workdir=runs/mine --output=serving --new_items=today.jsonl
"""

_WORKDIR = define_path("workdir", "Folder of a trained run.")
_OUTPUT = define_path(
    "output", "Folder to write; an export there, with nothing else, is replaced. export/ in --workdir if empty."
)
_NEW_ITEMS = define_path(
    "new_items", "Items beyond the catalogue: JSONL, CSV or Parquet with item_id and the text columns of the run."
)
_NEW_EMBEDDINGS = define_path(
    "new_embeddings",
    "Their text embeddings, .npy [items, m], rows in the order of --new_items: for a run that was trained with "
    "--embeddings, by the same text encoder.",
)

_FILES = define_files_of_run()
_COLD_SCALE = define_cold_scale()


def main() -> None:
    """Runs the experiment that the flags describe."""
    if not _WORKDIR.value:
        raise InputError("Name the run: --workdir=DIR.")
    if _NEW_EMBEDDINGS.value and not _NEW_ITEMS.value:
        raise InputError("--new_embeddings are those of --new_items; give both.")
    output = _OUTPUT.value or _WORKDIR.value / "export"
    from spectran_jax.export import export_run

    files = {name: flag.value for name, flag in _FILES.items() if flag.value}
    rows, new = export_run(
        _WORKDIR.value,
        output,
        items=_NEW_ITEMS.value,
        embeddings=_NEW_EMBEDDINGS.value,
        files=files,
        cold_scale=_COLD_SCALE.value,
    )
    print(f"{rows:,} items{f', {new:,} of them new' if new else ''}: {output}")


if __name__ == "__main__":
    run(main, SYNOPSIS)
