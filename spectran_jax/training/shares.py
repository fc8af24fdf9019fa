"""Which rows of a batch a process reads: those of the devices that it holds."""

from __future__ import annotations

import jax
import numpy as np

from spectran_jax.errors import InputError


def rows_of_process(mesh: jax.sharding.Mesh, process_index: int) -> tuple[int, int]:
    """Which share of each batch a process reads, as (index, number of shares).

    Its devices hold some shards of the data axis; processes that hold the same ones read the same rows.

    Raises:
      InputError: where the shards of a process are not one run, as long as that of every other process.
    """
    axis = mesh.axis_names.index("data")
    by_shard = np.moveaxis(mesh.devices, axis, 0).reshape(mesh.shape["data"], -1)
    shards: dict[int, set[int]] = {}
    for shard, devices in enumerate(by_shard):
        for device in devices:
            shards.setdefault(device.process_index, set()).add(shard)
    mine = sorted(shards[process_index])
    size = len(mine)
    for process, held in shards.items():
        first = min(held)
        if len(held) != size or first % size or held != set(range(first, first + size)):
            raise InputError(
                f"--mesh gives process {process} the shards {sorted(held)} of the data axis; every process must hold "
                "one run of them, all equally long. Let the sizes of the other axes divide the devices of a process, "
                "or be multiples of them."
            )
    return mine[0] // size, mesh.shape["data"] // size
