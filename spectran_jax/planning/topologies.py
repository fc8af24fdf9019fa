"""TPU slices: their chips, how these are linked, and their devices as the compiler sees them.

Figures are those of Cloud TPU's documentation, https://docs.cloud.google.com/tpu/docs/ (pages v5e, v6e, v5p and
tpu7x, "System architecture"), a link's share being that of the chip's bidirectional bandwidth over its ports and both
directions: on v5e 400 GB/s over 4 ports is 50 GB/s a link and direction, and 32 links across the middle of 16 x 16 are
the 1.6 TB/s of bisection bandwidth that the page gives.

Which axes close to rings: on v5e and v6e those of 16 chips, a whole side of the pod; on v5p and tpu7x all, from a cube
of 4 x 4 x 4 on (https://docs.cloud.google.com/tpu/docs/v5p; Austin et al., How to Scale Your Model, 2025, "TPUs",
https://jax-ml.github.io/scaling-book/tpus). A hop takes about a microsecond (ibid., "Sharded matrices").
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
from jaxtyping import Int

from spectran_jax.errors import InputError, first_line, nearest

HOP_SECONDS = 1e-6
"""Latency of a link."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has; see the module for sources."""

    hbm_bytes: int
    peak_flops: float
    """bfloat16 FLOP/s."""
    hbm_bandwidth: float
    """Bytes a second."""
    ici_bandwidth: float
    """Bytes a second over all ports, both directions."""
    ports: int
    devices: int = 1
    """JAX devices: on tpu7x each of the two cores is one."""
    ring_from: int = 16
    """An axis is a ring where it has this many chips..."""
    cube_from: int = 0
    """...and, above 0, where every axis has this many."""

    @property
    def link_bandwidth(self) -> float:
        """Bytes a second of one link in one direction."""
        return self.ici_bandwidth / self.ports / 2


_GIB = 2**30
CHIPS = {
    "v5e": Chip(16 * _GIB, 197e12, 819e9, 400e9, 4),
    "v6e": Chip(32 * _GIB, 918e12, 1638e9, 800e9, 4),
    "v5p": Chip(95 * _GIB, 459e12, 2765e9, 1200e9, 6, ring_from=4, cube_from=4),
    "tpu7x": Chip(192 * _GIB, 2307e12, 7380e9, 1200e9, 6, devices=2, ring_from=4, cube_from=4),
}

_PLANE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v5e": _PLANE, "v6e": _PLANE, "v5p": (*_CUBES, "16x16x24"), "tpu7x": _CUBES}
"""Slices that can be had, by kind of chip."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis."""

    @property
    def chips(self) -> int:
        """How many there are."""
        return int(np.prod(self.shape))

    @property
    def rings(self) -> tuple[bool, ...]:
        """Which axes close to rings."""
        whole = min(self.shape) >= self.chip.cube_from
        return tuple(whole and size >= self.chip.ring_from for size in self.shape)


def parse(name: str) -> Topology:
    """The slice of a name such as v5e:16x16.

    Raises:
      InputError: for a slice that does not exist; lists those that do.
    """
    known = [f"{kind}:{shape}" for kind, shapes in SHAPES.items() for shape in shapes]
    if name not in known:
        near = nearest(name, known)
        hint = f" Did you mean {near}?" if near else ""
        listed = "; ".join(f"{kind}: {', '.join(shapes)}" for kind, shapes in SHAPES.items())
        raise InputError(f"--topology: unknown slice {name!r}.{hint} Known, as KIND:SHAPE, are {listed}.")
    kind, shape = name.split(":")
    return Topology(name, CHIPS[kind], tuple(int(size) for size in shape.split("x")))


def devices(topology: Topology) -> list[Any]:
    """The devices of a slice, to compile for: there need be no TPU.

    From then on this process, and those that it starts, compile for TPUs: variables of the environment are set.

    Raises:
      InputError: where the compiler is not installed, or does not know the slice.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise InputError(
            "The TPU compiler, libtpu, is not installed. It runs on a CPU; in the repository, pip install '.[plan]'."
        ) from None
    # libtpu asks the cloud's metadata server who its fellow workers are, and complains where there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Nor is there a chip that two processes could want at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Flags of another backend end a process that compiles with libtpu; its own are in LIBTPU_INIT_ARGS.
    os.environ.pop("XLA_FLAGS", None)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    except Exception as error:  # what it raises depends on the version of JAX
        raise InputError(f"libtpu can't compile for {topology.name}: {first_line(error)}") from None


def coordinates(devices: list[Any]) -> Int[np.ndarray, "D axes"]:
    """Where the chip of each device sits, int64."""
    return np.asarray([device.coords for device in devices], np.int64)
