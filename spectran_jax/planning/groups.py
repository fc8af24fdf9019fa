"""Which devices take part in a collective: the ways in which HLO writes replica groups, and the mesh axes they are."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from spectran_jax.planning.hlo import Instruction

Groups = Int[np.ndarray, "groups size"]
"""Devices by their number in the program; a row is a group."""

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:,?\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
_SIZE = re.compile(r"'([^']+)'=(\d+)")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(instruction: Instruction, devices: int) -> Groups:
    """The groups of a collective over `devices`; all of them in one where it names none.

    Raises:
      ValueError: for groups of different sizes, or written in another way.
    """
    text = instruction.attributes
    iota, mesh = _IOTA.search(text), _MESH.search(text)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
    if mesh:
        return _of_mesh(*mesh.groups())
    listed = instruction.attribute("replica_groups")
    rows = [_numbers(row) for row in re.findall(r"\{([\d,]*)\}", listed)]
    rows = [row for row in rows if row]
    if not rows:
        if listed.strip("{}, "):
            raise ValueError(f"Replica groups of {instruction.name} are written in an unknown way: {listed[:80]}")
        return np.arange(devices).reshape(1, -1)
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"Replica groups of {instruction.name} differ in size.")
    return np.asarray(rows)


def pairs(instruction: Instruction) -> Int[np.ndarray, "pairs two"]:
    """Source and target of each message of a collective-permute."""
    found = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs"))
    return np.asarray(found, np.int64).reshape(-1, 2)


def mesh_axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group differ, those of one device left out.

    Args:
      groups: device numbers, those of the mesh's devices in order.
      mesh: size by axis.
    """
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)
    varies = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, differs in zip(mesh, varies, strict=True) if differs)


def _of_mesh(sizes: str, order: str | None, transpose: str | None, axes: str) -> Groups:
    """`mesh['a'=4,'b'=2] {'b'}`: all devices that differ along b alone; `'a':(2)2` is a part of an axis."""
    names = dict((name, int(size)) for name, size in _SIZE.findall(sizes))
    ids = _iota(order, transpose) if order else np.arange(int(np.prod(list(names.values()))))
    chosen = {name: (int(before or 1), int(size or names[name])) for name, before, size in _AXIS.findall(axes)}
    shape: list[int] = []
    inside: list[int] = []
    for name, size in names.items():
        before, part = chosen.get(name, (size, 1))
        if name in chosen:
            inside.append(len(shape) + 1)
        shape += [before, part, size // before // part]
    kept = [axis for axis in range(len(shape)) if axis not in inside]
    moved = ids.reshape(shape).transpose(*kept, *inside)
    return moved.reshape(-1, int(np.prod([shape[axis] for axis in inside])))


def _iota(sizes: str, transpose: str | None) -> Int[np.ndarray, "n"]:
    shape = _numbers(sizes)
    order = _numbers(transpose) if transpose else range(len(shape))
    return np.arange(int(np.prod(shape))).reshape(shape).transpose(*order).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
