"""The mesh, and the one table that says how every array lies on it.

Arrays carry logical axis names; `RULES` maps these to mesh axes. Everyone who places an array asks here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spectran_jax.config import TrainingConfig
from spectran_jax.errors import InputError
from spectran_jax.recommender import ItemTable
from spectran_jax.training.catalogue import frozen_by_row, has_item_rows, path_names

AXES = ("data", "model")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": "data",  # rows of a batch
    "item": AXES,  # rows of item tables: over all devices
}

_CUTS = (1_290_240, 184_320, 61_440, 3_840, 240, 48, 8)
"""Item tables have a multiple of one of these rows, which many numbers of devices cut evenly: products of powers of 2
up to 4,096 and of 3, 5 and, in the larger ones, 9 and 7."""
_WASTE = 20
"""A catalogue takes the largest cut that adds at most one row in this many."""


def table_rows(num_items: int) -> int:
    """Rows of the item tables of a catalogue: N, and some that are no item, so that many meshes cut them evenly.

    The number follows the catalogue and not the mesh: a checkpoint fits every mesh.

    Raises:
      InputError: where int32 can't number them.
    """
    cut = next((cut for cut in _CUTS if cut * _WASTE <= num_items), _CUTS[-1])
    rows = -(-num_items // cut) * cut
    if rows > np.iinfo(np.int32).max:
        raise InputError(f"{num_items:,} items are too many: their numbers are int32, which counts to 2,147,483,647.")
    return rows


def shards_items(mesh: Mesh, rows: int) -> bool:
    """Whether tables of `rows` rows are cut over the mesh: where it has both axes and devices that cut them evenly.

    Otherwise every device holds them whole, as does a mesh of more devices than a small catalogue is cut by.
    """
    return mesh.axis_names == AXES and mesh.size > 1 and rows % mesh.size == 0


def training_mesh(config: TrainingConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that `config` asks for, over all devices or these, on which its batches can be shared evenly.

    Raises:
      InputError: see `build_mesh` and `check_batches`.
    """
    mesh = build_mesh(config.mesh, config.parallelism, devices)
    check_batches(mesh, config)
    return mesh


def build_mesh(spec: str, parallelism: str = "jit", devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of `--mesh`: `auto` (all devices on data), or sizes such as `data:4,model:2`.

    For `pmap` it has the data axis alone, and tables are whole on every device.

    Args:
      spec: the flag's value.
      parallelism: that of `--parallelism`.
      devices: those of the mesh, in order; all that JAX finds if None.

    Raises:
      InputError: for an axis that is unknown or named twice, a malformed size, or a product other than the number of
        devices.
    """
    try:
        devices = jax.devices() if devices is None else devices
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"JAX finds no device (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {error}"
        ) from None
    sizes: dict[str, int] = {}
    if spec == "auto":
        sizes["data"] = len(devices)
    else:
        for part in spec.split(","):
            name, _, size = part.partition(":")
            if name not in AXES or not size.isdecimal() or int(size) < 1:
                raise InputError(f"--mesh={spec}: {part!r} is not AXIS:SIZE with an axis of {', '.join(AXES)}.")
            if name in sizes:
                raise InputError(f"--mesh={spec} names the axis {name} twice; give one size for each.")
            sizes[name] = int(size)
    sizes = dict.fromkeys(AXES, 1) | sizes
    product = int(np.prod(list(sizes.values())))
    if product != len(devices):
        raise InputError(f"--mesh={spec} asks for {product} devices, there are {len(devices)}.")
    if parallelism == "pmap":
        if sizes["model"] > 1:
            raise InputError(f"--mesh={spec}: --parallelism=pmap has the data axis alone; take --mesh=auto.")
        return Mesh(np.asarray(devices), AXES[:1])
    return Mesh(np.asarray(devices).reshape([sizes[a] for a in AXES]), AXES)


def check_batches(mesh: Mesh, config: TrainingConfig) -> None:
    """Refuses batches that the data axis of the mesh can't share evenly, and micro-batches beyond a device's histories.

    Raises:
      InputError: naming the flag, the devices and the sizes that fit.
    """
    devices = mesh.shape["data"]
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config, name)
        if size % devices:
            below = size // devices * devices
            near = f"{below} or {below + devices}" if below else str(devices)
            raise InputError(
                f"--{name}={size} is not divisible by the {devices} devices of the mesh's data axis; take {near}."
            )
    most = config.batch_size // devices
    if mesh.size > 1 and config.micro_batches > most:
        raise InputError(
            f"--micro_batches={config.micro_batches} cuts the {most} of --batch_size={config.batch_size} that each of "
            f"the {devices} devices of the mesh's data axis has; take at most {most}."
        )


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes (leading ones; the rest is replicated)."""
    return NamedSharding(mesh, PartitionSpec(*(None if name is None else RULES[name] for name in logical)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return sharding(mesh)


def item_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """The sharding of an array with one row an item."""
    return sharding(mesh, "item") if shards_items(mesh, rows) else replicated(mesh)


def row_specs(tree: Any, names: Sequence[str]) -> Any:
    """Specifications for `shard_map` over tables that are cut: arrays of these names by rows, the rest whole."""
    rows, whole = PartitionSpec(RULES["item"]), PartitionSpec()
    return jax.tree_util.tree_map_with_path(lambda path, _: rows if has_item_rows(path, names) else whole, tree)


def of_first_copy(mesh: Mesh, array: Array) -> Array:
    """A replicated array that the devices along `model` have each computed anew, as the first of them has it.

    On a GPU sums by scatter have no fixed order, so that such copies differ in their last bits, and parameters that are
    updated by them drift apart. Without a `model` axis there are no copies, and this does nothing.
    """
    if mesh.shape.get("model", 1) == 1:
        return array

    def first(copy: Array) -> Array:
        return jax.lax.psum(jnp.where(jax.lax.axis_index("model") == 0, copy, jnp.zeros_like(copy)), "model")

    whole = PartitionSpec()
    return jax.shard_map(first, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(array)


def frozen_shardings(mesh: Mesh, frozen: Any, item_arrays: Mapping[str, Sequence[str]], rows: int) -> Any:
    """Shardings of the frozen arrays: those of one row an item (`frozen_by_row`) by the rule of `item`, the rest
    replicated."""

    def of(path: tuple[Any, ...], _: Any) -> NamedSharding:
        return item_sharding(mesh, rows) if frozen_by_row(path, item_arrays) else replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, frozen)


def state_shardings(mesh: Mesh, state: Any, item_params: Sequence[str]) -> Any:
    """Shardings of the training state (shapes suffice): tables by rows, the rest replicated."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return item_sharding(mesh, leaf.shape[0]) if has_item_rows(path, item_params) else replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def table_sharding(mesh: Mesh, rows: int) -> Any:
    """Shardings of an `ItemTable`."""
    shardings: tuple[Any, Any] = item_sharding(mesh, rows), item_sharding(mesh, rows)
    return ItemTable(*shardings)


def put_array(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A NumPy array on the devices, in the shape and sharding of `like`, with zeros for the rows beyond its own.

    Each device gets its rows alone, read when it is its turn: the array may be a file larger than memory.
    """
    array, shape, sharding = np.asarray(array), like.shape, like.sharding
    assert sharding is not None
    if jax.process_count() == 1 and array.shape == shape:
        return jax.device_put(array, sharding)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if not index:
            return array.astype(like.dtype, copy=False)
        first, last, _ = index[0].indices(shape[0])
        own = np.asarray(array[first:last], like.dtype)
        if len(own) == last - first:
            return own
        padded = np.zeros((last - first, *array.shape[1:]), like.dtype)
        padded[: len(own)] = own
        return padded

    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, part, dtype=like.dtype)


def batch_shardings(mesh: Mesh, batch: Any, *, steps: bool = False) -> Any:
    """Shardings of a batch: rows over the data axis; item rows, which all devices read, on each of them.

    Args:
      mesh: the mesh.
      batch: its leaves may be NumPy arrays or shapes.
      steps: the leaves have a leading axis of steps.
    """

    def of(path: tuple[Any, ...], _: Any) -> NamedSharding:
        shared = "rows" in path_names(path)
        return replicated(mesh) if shared else sharding(mesh, *[None] * steps, "batch")

    return jax.tree_util.tree_map_with_path(of, batch)


def put_batch(mesh: Mesh, batch: Any, *, steps: bool = False) -> Any:
    """Copies a process-local NumPy batch to the devices, one global array a leaf; explicit, so the guard allows it."""
    shardings = batch_shardings(mesh, batch, steps=steps)
    if jax.process_count() == 1:
        return jax.device_put(batch, shardings)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, x), batch, shardings)
