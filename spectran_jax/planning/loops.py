"""How often the body of a while loop runs, where the program says so."""

from __future__ import annotations

import re

from spectran_jax.planning.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_THROUGH = frozenset({"copy", "bitcast", "copy-done", "copy-start", "convert", "reshape"})


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Runs of the body of `loop`; None where data decides.

    XLA's passes note the number where they found it. TPU's compiler drops the note, so the loop that `fori_loop` and
    `scan` make is read as well: a number that starts at a constant, goes up by another, and is compared with a third.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition")[0]]
    body = module.computations[loop.called("body")[0]]
    compare, inputs = _into(module, condition, condition.root)
    if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, bound = inputs

    def constant(inside: Computation, value: Instruction) -> int | None:
        """A number that the loop does not change: written there, or handed through."""
        number = _constant(inside, value)
        held = _element(inside, value)
        if number is not None or held is None or _element(body, body.operands(body.root)[held]) != held:
            return number
        return _constant(computation, _carried(computation, loop, held))

    place = _element(condition, counter)
    added = None if place is None else _added(module, body, place)
    step = None if added is None else constant(body, added)
    start = None if place is None else _constant(computation, _carried(computation, loop, place))
    end = constant(condition, bound)
    if start is None or end is None or step is None or step < 1:
        return None
    return max(-(-(end - start) // step), 0)


def _into(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Instruction | None, list[Instruction]]:
    """The instruction, or the only one in the fusion that it is, and its operands as the computation knows them."""
    if instruction.opcode != "fusion":
        return instruction, computation.operands(instruction)
    inner = module.computations[instruction.called("calls")[0]]
    outside = computation.operands(instruction)
    inputs = [
        outside[int(operand.literal)] if operand.opcode == "parameter" else operand
        for operand in inner.operands(inner.root)
    ]
    return inner.root, inputs


def _carried(computation: Computation, loop: Instruction, place: int) -> Instruction | None:
    """What the loop is given at this place of its tuple."""
    (given,) = computation.operands(loop)
    if given.opcode != "tuple":
        return None
    return computation.operands(given)[place]


def _constant(computation: Computation, instruction: Instruction | None) -> int | None:
    while instruction is not None and instruction.opcode in _THROUGH and instruction.operands:
        instruction = computation.operands(instruction)[0]
    if instruction is None or instruction.opcode != "constant":
        return None
    number = re.fullmatch(r"-?\d+", instruction.literal.strip())
    return int(number[0]) if number else None


def _element(computation: Computation, instruction: Instruction) -> int | None:
    """The place in the loop's tuple that a value is read from."""
    while instruction.opcode in _THROUGH and instruction.operands:
        instruction = computation.operands(instruction)[0]
    if instruction.opcode != "get-tuple-element":
        return None
    (source,) = computation.operands(instruction)
    return int(instruction.attribute("index")) if source.opcode == "parameter" else None


def _added(module: Module, body: Computation, place: int) -> Instruction | None:
    """What each run adds to the number at this place."""
    returned = body.root
    if returned.opcode != "tuple":
        return None
    value = body.operands(returned)[place]
    while value.opcode in _THROUGH and value.operands:
        value = body.operands(value)[0]
    step, inputs = _into(module, body, value)
    if step is None or step.opcode != "add" or len(inputs) != 2:
        return None
    at = [_element(body, each) for each in inputs]
    return inputs[1] if at[0] == place else inputs[0] if at[1] == place else None
