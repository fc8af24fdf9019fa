"""FLOPs and main-memory traffic of the instructions of a module.

XLA's own `cost_analysis` counts the body of a loop once and a scatter as a pass over the whole table, and knows no
memory spaces. Here:

- FLOPs are those of dots and convolutions, two a multiplication with its addition, times the passes that the operands'
  precision takes on a bfloat16 unit ("high" 3, "highest" 6). Elementwise work is bounded by memory, not by peak FLOP/s.
- Bytes are those of operands and results that lie in the main memory, each once an instruction. Of what is sliced,
  gathered, scattered or updated in place, the rows that are touched count, and not the table.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from spectran_jax.planning.hlo import Computation, Instruction, Module, Shape

FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "opt-barrier", "domain", "copy-start", "slice-start", "dynamic-slice-start", "while", "conditional", "call",
        "async-start", "async-update", "async-done", "add-dependency",
    }
)  # fmt: skip
"""Instructions that move nothing themselves."""

_SLICED = frozenset({"dynamic-slice", "slice", "gather"})
_COPIED = frozenset({"copy-done", "slice-done", "dynamic-slice-done"})
_PASSES = {"highest": 6, "high": 3}
_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")


class Cost(NamedTuple):
    """Of one device."""

    flops: float = 0.0
    bytes: float = 0.0
    """Read and written in the main memory."""

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> Cost:
        """Of so many runs."""
        return Cost(self.flops * count, self.bytes * count)


def cost(module: Module, computation: Computation, instruction: Instruction) -> Cost:
    """The cost of one instruction that is no collective, without that of loops and branches that it calls."""
    if instruction.opcode in FREE:
        return Cost()
    flops = product_flops(module, computation, instruction)
    operands = computation.operands(instruction)
    if instruction.opcode in _COPIED:  # from one memory to another, or within the main one
        return Cost(flops, instruction.bytes * (2 - bool(instruction.shapes and instruction.shapes[0].space)))
    if instruction.opcode == "fusion":
        return Cost(flops, _fusion_bytes(module, operands, instruction))
    if instruction.opcode in _SLICED:
        return Cost(flops, 2 * _main(instruction.shapes))
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return Cost(flops, 2 * _main(operands[_update(instruction)].shapes))
    return Cost(flops, sum(_main(operand.shapes) for operand in operands) + _main(instruction.shapes))


def product_flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a dot or a convolution, or of those in a fusion; 0 for all else."""
    if instruction.opcode == "fusion":
        inner = [module.computations[name] for name in instruction.called("calls")]
        return sum(product_flops(module, part, each) for part in inner for each in part)
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (operand.shapes[0] for operand in computation.operands(instruction))
    count = _dot(instruction, left) if instruction.opcode == "dot" else _convolution(instruction, left, right)
    precisions = instruction.attribute("operand_precision").split(",")
    return 2.0 * count * max(_PASSES.get(precision, 1) for precision in precisions)


def _dot(instruction: Instruction, left: Shape) -> int:
    contracted = [int(axis) for axis in re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))]
    return instruction.shapes[0].elements * math.prod(left.sizes[axis] for axis in contracted)


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> int:
    """Multiplications of real numbers: those with what padding and dilation put in between are left out.

    TPU's compiler writes a product with batch axes as a convolution over dilated ones, so this matters.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    out = instruction.shapes[0]
    window = dict(_WINDOW.findall(instruction.attribute("window")))
    count = out.sizes[labels[3].index("b")] * out.sizes[labels[3].index("f")] * right.sizes[labels[2].index("i")]
    for axis in range(len(window.get("size", "").split("x")) if "size" in window else 0):
        read = lambda name, default, axis=axis: int(window[name].split("x")[axis]) if name in window else default  # noqa: E731
        low = int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
        base = left.sizes[labels[1].index(str(axis))]
        places = np.arange(out.sizes[labels[3].index(str(axis))]) * read("stride", 1) - low
        at = places[:, None] + np.arange(read("size", 1)) * read("rhs_dilate", 1)
        dilation = read("lhs_dilate", 1)
        count *= int(((at >= 0) & (at <= (base - 1) * dilation) & (at % dilation == 0)).sum())
    return count


def _fusion_bytes(module: Module, operands: list[Instruction], fusion: Instruction) -> float:
    inner = module.computations[fusion.called("calls")[0]]
    total = 0.0
    for parameter in inner:
        if parameter.opcode == "parameter" and int(parameter.literal) < len(operands):
            source = operands[int(parameter.literal)]
            if not source.shapes or not source.shapes[0].space:
                total += _read(module, inner, parameter)
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    for result, shape in zip(results, fusion.shapes, strict=False):
        if not shape.space:
            total += _written(module, inner, result)
    return total


def _read(module: Module, inner: Computation, value: Instruction) -> float:
    """Bytes of a value that its users in a fusion read."""
    total = 0.0
    for user in inner.users(value.name):
        first = user.operands[0] == value.name
        if user.opcode in ("bitcast", "get-tuple-element"):
            total += _read(module, inner, user)
        elif user.opcode == "fusion":
            called = module.computations[user.called("calls")[0]]
            numbers = {str(at) for at, name in enumerate(user.operands) if name == value.name}
            total += sum(_read(module, called, p) for p in called if p.opcode == "parameter" and p.literal in numbers)
        elif user.opcode in _SLICED and first:
            total += user.bytes
        elif user.opcode in ("dynamic-update-slice", "scatter") and first:
            total += inner.operands(user)[_update(user)].bytes if user.opcode == "scatter" else 0
        elif not (user.opcode == "tuple" and user.root):  # handed through, in place
            return value.bytes
    return min(total, value.bytes)


def _written(module: Module, inner: Computation, result: Instruction) -> float:
    if result.opcode == "parameter":
        return 0
    if result.opcode == "bitcast":
        return _written(module, inner, inner.operands(result)[0])
    if result.opcode == "fusion":
        called = module.computations[result.called("calls")[0]]
        return _written(module, called, called.root)
    if result.opcode in ("dynamic-update-slice", "scatter"):
        return inner.operands(result)[_update(result)].bytes
    return result.bytes


def _update(instruction: Instruction) -> int:
    return 1 if instruction.opcode == "dynamic-update-slice" else len(instruction.operands) - 1


def _main(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.space)
