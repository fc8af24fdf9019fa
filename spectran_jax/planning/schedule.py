"""What a device does, in order: computes, sends, waits for what was sent; with loops.

A collective either blocks, or is an Issue that an Await ends later; what stands between them may run meanwhile. Three
notations say the latter: `all-gather-start` and `all-gather-done`; `async-start` of a computation that holds the
collective; and, on TPU, fusions around an `AsyncCollectiveStart` and an `AsyncCollectiveDone`, with the collective
repeated in fusions between them that compute while it runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from spectran_jax.planning.costs import Cost, cost
from spectran_jax.planning.groups import Groups, pairs, replica_groups
from spectran_jax.planning.hlo import Computation, Instruction, Module
from spectran_jax.planning.loops import trip_count

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Collective:
    """One exchange between devices."""

    name: str
    kind: str
    bytes: int
    """Of the whole operand on each device; of an all-gather, of its whole result."""
    groups: Groups
    """Devices that exchange; of a collective-permute, pairs of a source and a target."""
    source: str
    """The JAX operation that it comes from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compute:
    """Work of the device itself."""

    name: str
    cost: Cost


@dataclasses.dataclass(frozen=True, eq=False)
class Issue:
    """A collective begins; it blocks unless an `Await` with the same key follows."""

    key: str
    collective: Collective
    blocks: bool


@dataclasses.dataclass(frozen=True)
class Await:
    """A collective must have ended."""

    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A part that runs several times."""

    trips: int | None
    """None where data decides."""
    events: tuple[Event, ...]


Event = Compute | Issue | Await | Loop


def schedule(module: Module, devices: int) -> tuple[Event, ...]:
    """The events of a program for so many devices; of a branch, those of its costliest side, and the loops of
    the others whose length data decides."""
    return _Reader(module, devices).read(module.entry)


def collectives(events: tuple[Event, ...], times: int = 1) -> Iterator[tuple[Collective, int | None]]:
    """Every collective with how often it runs; None in a loop whose length data decides."""
    for event in events:
        if isinstance(event, Issue):
            yield event.collective, times
        elif isinstance(event, Loop):
            if event.trips is None:
                yield from ((collective, None) for collective, _ in collectives(event.events))
            else:
                yield from collectives(event.events, times * event.trips)


def open_loops(events: tuple[Event, ...]) -> Iterator[Loop]:
    """The loops whose length data decides, which no total counts; one within another goes with it."""
    for event in events:
        if isinstance(event, Loop):
            yield from (event,) if event.trips is None else open_loops(event.events)


def total(events: tuple[Event, ...]) -> Cost:
    """Of all computing, without that of loops whose length data decides."""
    sum_ = Cost()
    for event in events:
        if isinstance(event, Compute):
            sum_ += event.cost
        elif isinstance(event, Loop):
            sum_ += total(event.events).times(event.trips or 0)
    return sum_


@dataclasses.dataclass(frozen=True)
class _Reader:
    module: Module
    devices: int

    def read(self, computation: Computation) -> tuple[Event, ...]:
        return tuple(event for instruction in computation for event in self.events(computation, instruction))

    def events(self, computation: Computation, instruction: Instruction) -> Iterator[Event]:
        opcode = instruction.opcode
        base = opcode.removesuffix("-start").removesuffix("-done")
        if opcode == "while":
            body = self.module.computations[instruction.called("body")[0]]
            condition = self.module.computations[instruction.called("condition")[0]]
            trips = trip_count(self.module, computation, instruction)
            yield Loop(trips, self.read(condition) + self.read(body))
        elif opcode == "conditional":
            names = instruction.called("branch_computations") or (
                *instruction.called("true_computation"),
                *instruction.called("false_computation"),
            )
            branches = [self.read(self.module.computations[name]) for name in names]
            costliest = max(branches, key=_weight, default=())
            yield from costliest
            # Nobody knows what such a loop costs: a side that has one may be the costliest.
            for other in branches:
                if other is not costliest:
                    yield from open_loops(other)
        elif opcode == "call":
            yield from self.read(self.module.computations[instruction.called("to_apply")[0]])
        elif base in KINDS:
            if opcode.endswith("-done"):
                yield Await(instruction.operands[0])
            else:
                yield from self.issue(instruction.name, computation, instruction, blocks=opcode == base)
        elif opcode in ("async-start", "async-done"):
            yield from self.wrapped(computation, instruction)
        elif opcode == "fusion":
            yield from self.fused(computation, instruction)
        else:
            yield Compute(instruction.name, cost(self.module, computation, instruction))

    def issue(
        self, key: str, computation: Computation, instruction: Instruction, *, blocks: bool, kind: str = ""
    ) -> Iterator[Event]:
        kind = kind or instruction.opcode.removesuffix("-start")
        if kind == "collective-permute":
            groups = pairs(instruction)
            groups = groups[groups[:, 0] != groups[:, 1]]
            alone = not len(groups)
        else:
            groups = replica_groups(instruction, self.devices)
            alone = groups.shape[1] < 2
        if alone:
            return
        size = sum(operand.bytes for operand in computation.operands(instruction))
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        sent = Collective(
            name=instruction.name,
            kind=kind,
            bytes=size * groups.shape[1] if kind == "all-gather" else size,
            groups=groups,
            source=source[1] if source else "",
        )
        yield Issue(key, sent, blocks)

    def wrapped(self, computation: Computation, instruction: Instruction) -> Iterator[Event]:
        if instruction.opcode == "async-done":
            (started,) = computation.operands(instruction)
            while started.opcode == "async-update":
                (started,) = computation.operands(started)
            yield Await(started.name)
            return
        inner = self.module.computations[instruction.called("calls")[0]]
        for each in inner:
            if each.opcode in KINDS:
                yield from self.issue(instruction.name, inner, each, blocks=False)
            else:
                yield Compute(each.name, cost(self.module, inner, each))

    def fused(self, computation: Computation, instruction: Instruction) -> Iterator[Event]:
        inner = self.module.computations[instruction.called("calls")[0]]
        sent = next((each for each in inner if each.opcode in KINDS), None)
        if sent is None:
            yield Compute(instruction.name, cost(self.module, computation, instruction))
            return
        targets = {each.attribute("custom_call_target").strip('"') for each in inner if each.opcode == "custom-call"}
        key = f"{sent.opcode} {sent.attribute('channel_id')}"
        if "AsyncCollectiveStart" in targets:
            yield from self.issue(key, inner, sent, blocks=False)
        elif "AsyncCollectiveDone" in targets:
            yield Await(key)
        elif "async_collective_fusion_config" in sent.attributes:
            yield Compute(instruction.name, cost(self.module, computation, instruction))
        else:
            # An all-reduce of which each device keeps a part is a reduce-scatter.
            cut = sent.opcode == "all-reduce" and any(each.opcode == "dynamic-slice" for each in inner)
            yield from self.issue(instruction.name, inner, sent, blocks=True, kind="reduce-scatter" if cut else "")


def _weight(events: tuple[Event, ...]) -> tuple[float, float]:
    sent = sum(collective.bytes * (runs or 0) for collective, runs in collectives(events))
    work = total(events)
    return sent + work.bytes, work.flops
