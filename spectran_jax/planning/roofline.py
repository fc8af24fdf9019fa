"""Lower bounds of time: of an exchange on a torus, of computing, and of a step that does both.

Let B be the bandwidth of a link in one direction, n the devices of a group, and V the bytes of the whole operand on
each (of an all-gather, of its whole result). A group is a box of the slice, e chips along an axis.

**Gathering and reducing.** A device of an all-gather receives the V (n - 1) / n bytes that it lacks, over the links
that it has within the box: two an axis that is a ring, one at the end of a line. All of them can be busy all the time,
with a part of the data for each axis that goes first around it:

    all-gather = reduce-scatter = V (n - 1) / n / (B links),    all-reduce = both = 2 V (n - 1) / n / (B links)

**All-to-all.** Each device has V / n for every other. Cut an axis of e chips in the middle, a on one side: the
n a / e devices there send V / n to each of the n (e - a) / e on the other, over n / e lines with one link each, two
where they are rings. The slowest axis decides:

    V a (e - a) / e / (B links a line),    on a ring of e even: V e / (8 B)

which is k V / 8 B on a k x k torus; and nobody sends faster than by all its links at once. Routing axis by axis, each
message the shorter way around, reaches the bound, because every link of an axis then carries the same.

**Several devices a chip** (two cores, on tpu7x) share its links, each its part. Of what is gathered or reduced, a chip
whose cores are all in the group needs one copy, over all its links.

**Permutation.** Messages of V bytes are routed axis by axis, half of one each way where both are as short; the link
with most of them decides.

Where a group takes every s-th chip of an axis, s groups share its links. A first byte needs `HOP_SECONDS` a link, to
the farthest device and, of an all-reduce, back: an exchange takes the longer of that and of its bytes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spectran_jax.planning.costs import Cost
from spectran_jax.planning.schedule import Await, Collective, Compute, Event, Issue, Loop, collectives, total
from spectran_jax.planning.topologies import HOP_SECONDS, Chip, Topology

EXCHANGES = ("all-to-all", "ragged-all-to-all")
"""Kinds in which every device has something else for every other."""


class Side(NamedTuple):
    """An axis of the box that a group is."""

    size: int
    """Devices along it."""
    stride: int
    """Chips from one to the next, which is also how many groups share a link."""
    ring: bool

    @property
    def links(self) -> float:
        """That a device at the end has along the axis, or its share of them."""
        return (1 + self.ring) / self.stride if self.size > 1 else 0.0

    @property
    def hops(self) -> int:
        """Links to the farthest device."""
        along = (self.size - 1) * self.stride
        return (along + self.stride) // 2 if self.ring else along


@dataclasses.dataclass(frozen=True, eq=False)
class Roofline:
    """The bounds of one slice."""

    topology: Topology
    coordinates: Int[np.ndarray, "D axes"]
    """Of the chip of each device, in the order of the program's devices."""

    @property
    def chip(self) -> Chip:
        """What the slice is made of."""
        return self.topology.chip

    def compute_seconds(self, cost: Cost) -> float:
        """Of so much work on one device: the longer of its FLOPs and its memory traffic."""
        share = self.chip.devices
        return max(cost.flops * share / self.chip.peak_flops, cost.bytes * share / self.chip.hbm_bandwidth)

    def seconds(self, collective: Collective) -> float:
        """Of a collective."""
        if collective.kind == "collective-permute":
            load, hops = self._permutation(collective.groups)
            return max(hops * HOP_SECONDS, load * collective.bytes / self.chip.link_bandwidth)
        link = self.chip.link_bandwidth / self.chip.devices
        group = collective.groups[0]
        if collective.kind not in EXCHANGES:
            places = self.coordinates[group][:, : len(self.topology.shape)]
            link *= len(group) // len(np.unique(places, axis=0))
        return box_seconds(collective.kind, collective.bytes, self.box(group), link)

    def box(self, group: Int[np.ndarray, "n"]) -> list[Side]:
        """The box of a group; of a group that is none, the box around it."""
        places = self.coordinates[group][:, : len(self.topology.shape)]
        sides = []
        for axis, (size, ring) in enumerate(zip(self.topology.shape, self.topology.rings, strict=True)):
            found = np.unique(places[:, axis])
            stride = int(np.diff(found).max()) if len(found) > 1 else 1
            closed = ring and len(found) * stride == size and len(found) > 2
            sides.append(Side(len(found), stride, closed))
        return sides

    def _permutation(self, pairs: Int[np.ndarray, "pairs two"]) -> tuple[float, int]:
        """Messages on the busiest link of a chip, and links of the longest way."""
        load: dict[tuple[int, ...], float] = collections.defaultdict(float)
        longest = 0
        for source, target in pairs:
            at, hops = [int(place) for place in self.coordinates[source]], 0
            for axis, (size, ring) in enumerate(zip(self.topology.shape, self.topology.rings, strict=True)):
                ahead = int(self.coordinates[target][axis]) - at[axis]
                if ring and abs(ahead) * 2 > size:
                    ahead -= size if ahead > 0 else -size
                ways = (ahead, -ahead) if ring and abs(ahead) * 2 == size else (ahead,)
                for way in ways:
                    step = 1 if way > 0 else -1
                    for done in range(0, way, step):
                        load[axis, step, *at[:axis], (at[axis] + done) % size, *at[axis + 1 :]] += 1 / len(ways)
                at[axis] = (at[axis] + ahead) % size
                hops += abs(ahead)
            longest = max(longest, hops)
        return max(load.values(), default=0.0), longest


def box_seconds(kind: str, size: float, sides: list[Side], link: float) -> float:
    """Of a collective of `size` bytes in a box, by a link's bytes a second in one direction; see the module."""
    devices = int(np.prod([side.size for side in sides]))
    links = sum(side.links for side in sides)
    hops = sum(side.hops for side in sides)
    if not links:  # both devices on one chip
        return 0.0
    received = size * (devices - 1) / devices / links / link
    if kind in EXCHANGES:
        across = [size * (e // 2) * (e - e // 2) / e / (side.links * link) for side in sides if (e := side.size) > 1]
        return max(received, hops * HOP_SECONDS, *across)
    return max(received, hops * HOP_SECONDS) * (2 if kind == "all-reduce" else 1)


class Times(NamedTuple):
    """Seconds of one run of a program."""

    compute: float
    network: float
    """Of all collectives, one after another."""
    overlapped: float
    """Of the whole, where collectives run beside what the schedule puts between their start and their end."""

    @property
    def blocking(self) -> float:
        """Of the whole, without overlap."""
        return self.compute + self.network


def times(roofline: Roofline, events: tuple[Event, ...]) -> Times:
    """The bounds of a program; loops whose length data decides are left out.

    The device's work takes the longer of all its FLOPs and all its memory traffic, shared out by what each instruction
    would take alone. Collectives use the network one at a time, in the order in which they begin.
    """
    compute = roofline.compute_seconds(total(events))
    apart = _sum(events, lambda event: roofline.compute_seconds(event.cost) if isinstance(event, Compute) else 0.0)
    scale = compute / apart if apart else 0.0
    network = _sum(events, lambda event: roofline.seconds(event.collective) if isinstance(event, Issue) else 0.0)
    return Times(compute, network, _run(roofline, events, scale))


def _sum(events: tuple[Event, ...], seconds: Callable[[Event], float]) -> float:
    """Seconds of all events, those in loops as often as they run."""
    return sum(
        _sum(event.events, seconds) * (event.trips or 0) if isinstance(event, Loop) else seconds(event)
        for event in events
    )


def _run(roofline: Roofline, events: tuple[Event, ...], scale: float) -> float:
    """The clock after these events; what was issued and not awaited ends with them."""
    clock = free = 0.0
    ends: dict[str, float] = {}
    for event in events:
        if isinstance(event, Compute):
            clock += scale * roofline.compute_seconds(event.cost)
        elif isinstance(event, Issue):
            free = max(clock, free) + roofline.seconds(event.collective)
            ends[event.key] = free
            if event.blocks:
                clock = free
        elif isinstance(event, Await):
            clock = max(clock, ends.get(event.key, 0.0))
        elif event.trips:
            if any(collectives(event.events)):  # those of a round are timed as if nothing else were on its way
                clock = max(clock, free)
            clock += event.trips * _run(roofline, event.events, scale)
    return max(clock, free)
