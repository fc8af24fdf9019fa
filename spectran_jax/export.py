"""A trained run for serving: item vectors, their ids, and the user model as one program that needs JAX alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int

from spectran_jax import backbones
from spectran_jax.data.text_files import require_file
from spectran_jax.digest import params_digest
from spectran_jax.errors import DISK_FULL, InputError, RunError
from spectran_jax.layout import SequenceLayout
from spectran_jax.new_items import NewItems, new_items
from spectran_jax.progress import task
from spectran_jax.recommender import ItemTable
from spectran_jax.training import catalogue
from spectran_jax.training.programs import build_table
from spectran_jax.training.restore import load_run, read_run, tell_of_end
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import Params
from spectran_jax.training.workdir import EXPORT, refuse_own
from spectran_jax.writing import new_folder, require_writable

FORMAT = 1
"""Goes up whenever a reader of an older export would go wrong."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""That the program is lowered for."""

_FILES = {
    "items": "vectors.npy, lengths.npy and item_ids.jsonl: a row each; the catalogue's, then new ones",
    "user_states": "user_states.stablehlo: jax.export.deserialize(bytes).call(*arguments); a row of NaN for a history "
    "with an item outside 0..N-1 or a count outside 1..L",
}

_NAMES = frozenset({"vectors.npy", "lengths.npy", "item_ids.jsonl", "user_states.stablehlo", EXPORT})
"""What an export holds, and nothing else."""


def export_run(
    workdir: Path,
    output: Path,
    *,
    items: Path | None = None,
    embeddings: Path | None = None,
    files: Mapping[str, Path] | None = None,
    cold_scale: float | None = None,
) -> tuple[int, int]:
    """Writes the folder `output`, whole or not at all; an earlier export there is replaced.

    - `vectors.npy [N, d]`, float32: inner products with user states are the scores; `lengths.npy [N]`, float32;
    - `item_ids.jsonl`: your own id of each row, a JSON value a line;
    - `user_states.stablehlo`: what `user_states_function` gives, serialised by `jax.export`;
    - `export.json`: sizes, and what the program takes.

    Args:
      workdir: a trained run.
      output: the folder.
      items: a file of items beyond the catalogue, which get vectors from their text (`new_items`) and the last rows.
      embeddings: their text embeddings, where the run was trained on precomputed ones.
      files: where the run's own files lie now, by field; see `restore.read_run`.
      cold_scale: factor of the scores of items unseen in training; the run's if None.

    Returns:
      The number of rows, and how many of them are new items.

    Raises:
      InputError: no trained run, a folder that holds something else, or as `new_items`.
      RunError: where the disk refuses.
    """
    read_run(workdir, files)  # a typo there is no fault of --output, which lies in it by default
    _check_output(output, workdir)
    for path in (items, embeddings):
        if path is not None:
            require_file(path)
    setup, params = load_run(workdir, files, cold_scale)
    tell_of_end(workdir)
    extra = None if items is None else new_items(setup, params, items, embeddings)
    with task("Exporting", total=3) as progress:
        vectors, lengths, ids = _items(setup, params, extra)
        progress(1, 3)
        program = serialised(setup, params)
        progress(2, 3)
        about = _about(setup, params, len(ids), 0 if extra is None else len(extra.ids))
        try:
            with new_folder(Path(os.path.realpath(output)), replace=True) as draft:
                for name, array in (("vectors", vectors), ("lengths", lengths)):
                    np.save(draft / f"{name}.npy", array)
                lines = "".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in ids)
                (draft / "item_ids.jsonl").write_text(lines, encoding="utf-8")
                (draft / "user_states.stablehlo").write_bytes(program)
                (draft / EXPORT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or "the disk took a part of it"  # NumPy has no number for that
            advice = "free some space, or " if error.errno in (None, *DISK_FULL) else ""
            raise RunError(f"Could not write --output={output} ({reason}); {advice}name another folder.") from None
        progress(3, 3)
    return len(ids), about["items"]["new"]


def user_states_function(setup: Setup, params: Params) -> Callable[..., Float[jax.Array, "B d"]]:
    """`user_states(vectors, lengths, items, counts[, timestamps]) -> [B, d]`, float32: the state after each history.

    A pure function over one device. The backbone's parameters are constants of it, a few MiB at most; the item table,
    which may be of any size and hold new items, is an argument. A history that is not as said below has a state of NaN:
    a program can't refuse, and would read another item's row.

    - `vectors [N, d]` and `lengths [N]`, float32: the item table;
    - `items [B, L]` int32, L = `--max_length`: rows of the table, the newest L items of a history, the oldest of them
      in column 0; what is right of the newest is not read;
    - `counts [B]` int32: how many they are, from 1 to L;
    - `timestamps [B, L]` int32, for a backbone that was trained with times: seconds of the interactions since any
      moment of one's own, the same within a row.
    """
    model, names = setup.model.portable(), setup.model.item_encoder.item_params
    length, masked = setup.config.data.max_length, int(setup.masked)
    # Tables are not read here, and need to be no more than shapes.
    held = jax.tree_util.tree_map_with_path(
        lambda path, p: (
            np.broadcast_to(np.zeros((), p.dtype), p.shape)
            if catalogue.has_item_rows(path, names)
            else jnp.asarray(np.asarray(p))
        ),
        params,
    )

    def user_states(
        vectors: Float[Array, "N d"],
        lengths: Float[Array, "N"],
        items: Int[Array, "B L"],
        counts: Int[Array, "B"],
        timestamps: Int[Array, "B L"] | None = None,
    ) -> Float[jax.Array, "B d"]:
        at, count = jnp.arange(length + masked, dtype=jnp.int32)[None], counts[:, None]
        known, behind = at < count, at == count
        there = (items >= 0) & (items < vectors.shape[0]) | ~known[:, :length]
        good = there.all(axis=1) & (counts >= 1) & (counts <= length)
        room = ((0, 0), (0, masked))
        mask = known | behind if masked else known
        if timestamps is not None:
            newest = jnp.take_along_axis(timestamps, count - 1, axis=1)
            seconds = jnp.where(known, jnp.pad(timestamps, room), newest) - timestamps[:, :1]
            timestamps = jnp.where(mask, seconds, 0)
        layout = SequenceLayout(
            mask=mask,
            segment=mask.astype(jnp.int32),
            position=jnp.where(mask, at, 0),
            timestamp=timestamps,
            hidden=behind if masked else None,
        )
        inputs = ItemTable(vectors, lengths).inputs(jnp.where(known, jnp.pad(items, room), 0))
        states = jnp.asarray(model.apply({"params": held}, inputs, layout, method=model.read))
        state = jnp.take_along_axis(states, (count if masked else count - 1)[..., None], axis=1)[:, 0]
        return jnp.where(good[:, None], state, jnp.nan)

    return user_states


def serialised(setup: Setup, params: Params) -> bytes:
    """`user_states_function` for any number of items and histories, lowered for `PLATFORMS`."""
    items, batch = export.symbolic_shape("N, B")
    length, dimension = setup.config.data.max_length, setup.config.encoder.dimension
    shapes = [((items, dimension), jnp.float32), ((items,), jnp.float32)]
    shapes += [((batch, length), jnp.int32), ((batch,), jnp.int32)]
    shapes += [((batch, length), jnp.int32)] * _reads_time(setup)
    program = jax.jit(user_states_function(setup, params))
    exported = export.export(program, platforms=PLATFORMS)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return bytes(exported.serialize())


def _reads_time(setup: Setup) -> bool:
    return setup.timed and bool(backbones.lookup(setup.config.backbone.backbone).reads_time)


def _items(setup: Setup, params: Params, extra: NewItems | None) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Vectors, lengths and original ids of the catalogue and of what comes after it."""
    table, count = build_table(setup)(params, setup.place()), setup.dataset.num_items
    vectors, lengths = (np.asarray(part)[:count] for part in table)
    ids = list(setup.dataset.item_ids)
    if extra is not None:
        vectors, lengths = np.concatenate([vectors, extra.vectors]), np.concatenate([lengths, extra.lengths])
        ids += extra.ids
    return vectors, lengths, ids


def _about(setup: Setup, params: Params, rows: int, new: int) -> dict[str, Any]:
    config = setup.config
    arguments = ["vectors [N, d] float32", "lengths [N] float32", "items [B, L] int32", "counts [B] int32"]
    return {
        "format": FORMAT,
        "files": _FILES,
        "items": {"all": rows, "new": new},
        "dimension": config.encoder.dimension,
        "max_length": config.data.max_length,
        "score": config.objective.score,
        "cold_scale": config.objective.cold_scale,
        "item_encoder": config.encoder.item_encoder,
        "backbone": config.backbone.backbone,
        "arguments": [*arguments, *(["timestamps [B, L] int32, seconds"] * _reads_time(setup))],
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
        "digest": params_digest(params),
    }


def _check_output(output: Path, workdir: Path) -> None:
    """Refuses a folder that is anything but free or an earlier export and nothing else."""
    if not output.resolve().parent.is_dir():
        raise InputError(f"--output={output}: the folder {output.parent} does not exist.")
    if output.resolve() == workdir.resolve():
        raise InputError(f"--output={output} is the run itself; name a folder of its own.")
    refuse_own(workdir, output)
    if output.exists():
        names = {path.name for path in output.iterdir()} if output.is_dir() else {""}
        if names and EXPORT not in names:
            raise InputError(f"--output={output} is there already and no export; name a folder that is free.")
        if foreign := sorted(names - _NAMES):
            raise InputError(
                f"--output={output} holds {foreign[0]!r} beside an export, and would be replaced as a whole; move it "
                "away, or name a folder that is free."
            )
    require_writable(output)
