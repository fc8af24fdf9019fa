"""The account of a job on a slice: what each device holds, computes and sends, as plain data for tables and JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from spectran_jax.errors import InputError, first_line
from spectran_jax.planning import compiler, hlo, schedule
from spectran_jax.planning.groups import mesh_axes
from spectran_jax.planning.job import BEFORE_TRAINING, Job
from spectran_jax.planning.roofline import Roofline, times
from spectran_jax.training import memory
from spectran_jax.training.catalogue import has_item_rows

Account = dict[str, Any]

_SIZE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30}
_STEP = "train step"
_SMALLER = {
    "text coordinates u": "--spectrum_dtype=int8, --rank",
    "other arrays of the text": "--text_dimension, or an --item_encoder of the spectrum",
}
"""`memory.SMALLER` where a plan has other flags than a run."""


def account(
    job: Job, roofline: Roofline, *, everything: bool = True, announce: Callable[[str], None] = lambda name: None
) -> Account:
    """Compiles the programs of a job and reads them; all figures are of a device, of which tpu7x has two a chip.

    Args:
      job: see `job.build`.
      roofline: of its slice, with the devices in the order of the job's mesh.
      everything: compile the programs of an evaluation and a decomposition too, and not the train step alone.
      announce: is told the name of each program before it is compiled, which takes minutes.
    """
    setup, state = job.setup, job.programs.state
    topology = roofline.topology
    programs: dict[str, Account] = {}
    for name, lower in job.lowered().items():
        if everything or name == _STEP:
            announce(name)
            programs[name] = program(lower, roofline, dict(setup.mesh.shape))
    arrays = {name: size for name, size in memory.needed(setup, state).items() if size}
    usable = topology.chip.hbm_bytes // topology.chip.devices
    # An evaluation has its table beside all that training holds.
    above = max(
        each["bytes"].get("temporaries", 0) + each["bytes"].get("code", 0)
        for name, each in programs.items()
        if not name.startswith(BEFORE_TRAINING)
    )
    peak = max(sum(arrays.values()) + above, *(each["peak_bytes"] for each in programs.values()))
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "devices": topology.chips * topology.chip.devices,
        "mesh": dict(setup.mesh.shape),
        "num_items": setup.dataset.num_items,
        "batch_size": setup.config.training.batch_size,
        "hbm_bytes": usable,
        "arrays": arrays,
        "leaves": leaves(job),
        "programs": programs,
        "peak_bytes": peak,
        "fits": peak <= usable and not any(each["refused"] for each in programs.values()),
        "advice": advice(arrays),
        "payload": payload(job, programs[_STEP]),
    }


def program(lower: Callable[[], Any], roofline: Roofline, mesh: Mapping[str, int]) -> Account:
    """The account of one program: bytes, FLOPs, exchanges and seconds of a device.

    Bytes sent, FLOPs and seconds are without its `open_loops`, whose length data decides: it takes at least so much.

    Raises:
      InputError: where the compiler refuses it for another reason than memory, or JAX can't read what it made.
    """
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        found = _SIZE.search(str(error))
        if found is None:
            raise InputError(f"The compiler refuses the program: {first_line(error, 300)}") from None
        return _refused(int(float(found[1]) * _UNIT[found[2]]))
    sizes = compiled.memory_analysis()
    kept = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    parts = {
        "arguments": sizes.argument_size_in_bytes,
        "results": kept,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    events = schedule.schedule(hlo.parse(compiler.text(compiled)), int(np.prod(list(mesh.values()))))
    seconds, work = times(roofline, events), schedule.total(events)
    exchanges: list[Account] = [
        {
            "kind": each.kind,
            "bytes": each.bytes,
            "axes": list(mesh_axes(each.groups, mesh)),
            "runs": runs,
            "seconds": roofline.seconds(each),
            "source": each.source,
        }
        for each, runs in schedule.collectives(events)
    ]
    return {
        "refused": False,
        "open_loops": len(list(schedule.open_loops(events))),
        "bytes": parts,
        "peak_bytes": sum(parts.values()),
        "flops": work.flops,
        "hbm_bytes": work.bytes,
        "collectives": exchanges,
        "collective_bytes": sum(each["bytes"] * (each["runs"] or 0) for each in exchanges),
        "seconds": {
            "compute": seconds.compute,
            "network": seconds.network,
            "without_overlap": seconds.blocking,
            "with_overlap": seconds.overlapped,
        },
        "efficiency": {
            "without_overlap": seconds.compute / seconds.blocking if seconds.blocking else 1.0,
            "with_overlap": seconds.compute / seconds.overlapped if seconds.overlapped else 1.0,
        },
    }


def _refused(peak: int) -> Account:
    none: Account = {"refused": True, "bytes": {}, "peak_bytes": peak, "collectives": [], "collective_bytes": 0}
    return none | {"open_loops": 0, "flops": 0.0, "hbm_bytes": 0.0, "seconds": {}, "efficiency": {}}


def leaves(job: Job) -> list[Account]:
    """Every array that training holds: name, shape, dtype and bytes on each device, the largest first."""
    found = []
    for group, tree in (("state", job.programs.state), ("frozen", job.setup.abstract())):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            size = memory.shard_bytes(leaf, leaf.sharding)
            name = group + jax.tree_util.keystr(path)
            found.append({"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype), "bytes": size})
    return sorted(found, key=lambda leaf: -leaf["bytes"])


def advice(arrays: Mapping[str, int]) -> list[str]:
    """For the three largest kinds of arrays the flags that make them smaller."""
    largest = sorted(arrays, key=lambda name: -arrays[name])[:3]
    smaller = memory.SMALLER | _SMALLER
    return [f"{name} ({arrays[name] / memory.GIB:.2f} GiB): {smaller[name]}" for name in largest]


def payload(job: Job, step: Account) -> Account:
    """What a step can't but exchange, and what it does.

    `needed` is that of the touched rows, d float32 there and d back, an equal share of them for each device, and one
    copy of the gradients of what every device holds. `exchanged` is the operands' bytes of the step's collectives.
    """
    setup, names = job.setup, job.setup.model.item_encoder.item_params
    devices, sizes = setup.mesh.size, setup.exchange
    items = setup.dataset.num_items
    touched = min(sizes.wanted, items) * sizes.shards if sizes is not None else setup.touched or items
    shared = sum(
        4 * int(np.prod(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(job.programs.state.params)
        if not has_item_rows(path, names)
    )
    rows = touched * setup.config.encoder.dimension * 4 * 2 / devices if devices > 1 else 0.0
    needed = rows + (shared if devices > 1 else 0)
    exchanged = step["collective_bytes"]
    return {
        "touched_rows": touched,
        "rows_bytes": rows,
        "replicated_gradients": shared,
        "needed": needed,
        "exchanged": exchanged,
        "ratio": exchanged / needed if needed else 0.0,
    }
