"""What a run keeps in a device's memory, counted before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectran_jax.errors import InputError
from spectran_jax.training import partitioning
from spectran_jax.training.catalogue import has_item_rows, path_names
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import TrainState

GIB = 2**30

SMALLER = {
    "text coordinates u": "--spectrum_dtype=int8, --max_rank, --spectrum_memory=host or disk",
    "other arrays of the text": "--spectrum_memory=host or disk",
    "other frozen arrays": "another --item_encoder or --sampling",
    "ID table": "--table_dtype=bfloat16, --dimension",
    "optimiser state of the ID table": "--table_optimizer=rowwise_adagrad, --dimension",
    "gradients of the ID table": "--loss=sampled_softmax or infonce with --table_updates=sparse, --dimension",
    "item table of an evaluation": "--dimension",
    "other parameters with their optimiser state": "--blocks, --dimension, --max_length, a smaller --item_encoder",
}
"""Kinds of arrays, each with the flags that make it smaller."""


def needed(setup: Setup, state: TrainState) -> dict[str, int]:
    """Bytes that each kind of array takes on each device, by name. `state` may be shapes with shardings."""
    names = setup.model.item_encoder.item_params
    bytes_of = dict.fromkeys(SMALLER, 0)
    for tree, where in ((state.params, "ID table"), (state.opt_state, "optimiser state of the ID table")):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            kind = where if has_item_rows(path, names) else "other parameters with their optimiser state"
            bytes_of[kind] += shard_bytes(leaf, leaf.sharding)
    if setup.touched is None:  # dense gradients and updates, one each
        rows = [p for path, p in jax.tree_util.tree_leaves_with_path(state.params) if has_item_rows(path, names)]
        floats = [jax.ShapeDtypeStruct(p.shape, np.float32, sharding=p.sharding) for p in rows]
        bytes_of["gradients of the ID table"] = 2 * sum(shard_bytes(p, p.sharding) for p in floats)
    encoder = setup.model.item_encoder
    kinds = dict.fromkeys(encoder.wide_arrays, "other arrays of the text") | {"u": "text coordinates u"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(setup.abstract()):
        bytes_of[kinds.get(path_names(path)[-1], "other frozen arrays")] += shard_bytes(leaf, leaf.sharding)
    height = setup.access.rows
    table = jax.ShapeDtypeStruct((height, setup.config.encoder.dimension + 1), np.float32)
    bytes_of["item table of an evaluation"] = shard_bytes(table, partitioning.item_sharding(setup.mesh, height))
    return bytes_of


def require(
    setup: Setup, state: TrainState, available: Callable[[jax.sharding.Mesh], int | None] | None = None
) -> None:
    """Refuses a run whose arrays alone are larger than a device's memory.

    Args:
      setup: the run.
      state: shapes, dtypes and shardings of its training state.
      available: gives the bytes of a device's memory, None where they are unknown; asks the device by default.

    Raises:
      InputError: naming the bytes of each kind of array, and the flags that shrink the largest.
    """
    limit = (available or device_bytes)(setup.mesh)
    arrays = needed(setup, state)
    total = sum(arrays.values())
    if limit is None or total <= limit:
        return
    largest = sorted((name for name in arrays if arrays[name]), key=lambda name: -arrays[name])
    sizes = ", ".join(f"{name} {arrays[name] / GIB:.2f} GiB" for name in largest)
    flags = "; ".join(f"{name}: {SMALLER[name]}" for name in largest[:2])
    if setup.mesh.size > 1 and not setup.access.cut:
        flags = f"another number of devices, as {setup.mesh.size} hold each table whole (docs/sharding.md); {flags}"
    raise InputError(
        f"{setup.dataset.num_items:,} items need {total / GIB:.2f} GiB on each device, which has "
        f"{limit / GIB:.2f} GiB: {sizes}. What makes them smaller: {flags}."
    )


def device_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Memory of a device of the mesh: what an accelerator says, for a CPU what is free; None if unknown."""
    device = mesh.local_devices[0]  # nobody is told of another process's
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else free // len(mesh.local_devices)


def shard_bytes(leaf: Any, sharding: jax.sharding.Sharding) -> int:
    """What each device holds of an array, or of a shape, in bytes."""
    shape = sharding.shard_shape(np.shape(leaf))
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
