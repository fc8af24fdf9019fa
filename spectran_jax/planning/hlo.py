"""The text of a compiled module, `compiled.as_text()`, as computations of instructions.

Only what accounts need is read: names, shapes, operands and attributes. The grammar is that of XLA's printer; layouts
after a shape, in braces, give the memory space S(n) of accelerators: 0, the default, is the device's main memory.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
"""Of an element. Types of eight bits with longer names (f8e4m3fn) take one; tokens none."""

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s.*->.*\{\s*$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0
    """Memory space: 0 is the main memory, others are nearer."""

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Without what a layout pads."""
        return math.ceil(self.elements * BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of the result; several for a tuple, flattened."""
    operands: tuple[str, ...]
    literal: str
    """What stands between the parentheses."""
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str:
        """The text of `name=...`, without braces around it; empty where there is none."""
        found = re.search(rf"(?<![\w]){name}=", self.attributes)
        if found is None:
            return ""
        text = self.attributes[found.end() :]
        if text.startswith("{"):
            return text[1 : _closing(text, "{", "}")]
        return re.split(r"[,\s]", text, maxsplit=1)[0]

    def called(self, name: str) -> tuple[str, ...]:
        """The computations that an attribute such as `calls` or `body` names."""
        text = self.attribute(name)
        return tuple(_NAME.findall(text)) or ((text,) if text else ())


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by name, in order: that of the schedule where the module is scheduled."""

    name: str
    instructions: dict[str, Instruction]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(instruction for instruction in reversed(self.instructions.values()) if instruction.root)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that one reads."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read `name`."""
        return [instruction for instruction in self if name in instruction.operands]


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A compiled program, that of one device."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Reads the text of a module.

    Raises:
      ValueError: where it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            head = _COMPUTATION.match(line)
            if head:
                current = Computation(head[2], {})
                entry = current if head[1] else entry
        elif line.startswith("}"):
            computations[current.name] = current
            current = None
        else:
            instruction = parse_instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("The text is no HLO module: it has no ENTRY computation.")
    return Module(computations, entry)


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation; None where it is no instruction."""
    head = _HEAD.match(line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    stop = _closing(rest, "(", ")") + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, stop)
    if opcode is None:
        return None
    begin = opcode.end() - 1
    end = begin + _closing(rest[begin:], "(", ")")
    literal = rest[begin + 1 : end]
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shapes=parse_shapes(rest[:stop]),
        operands=tuple(_NAME.findall(literal)),
        literal=literal,
        attributes=rest[end + 1 :],
        root=bool(head[1]),
    )


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, e.g. `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`."""
    shapes = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        shapes.append(Shape(dtype, tuple(int(n) for n in sizes.split(",") if n), int(space[1]) if space else 0))
    return tuple(shapes)


def _closing(text: str, left: str, right: str) -> int:
    """Where the bracket that `text` starts with closes; strings are skipped."""
    depth, quoted, at = 0, False, 0
    while at < len(text):
        sign = text[at]
        if sign == "\\" and quoted:
            at += 1
        elif sign == '"':
            quoted = not quoted
        elif not quoted and sign == left:
            depth += 1
        elif not quoted and sign == right:
            depth -= 1
            if not depth:
                return at
        at += 1
    return len(text)
