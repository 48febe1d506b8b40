"""How much of a chip's large memory a scheduled program takes at its worst moment."""

from __future__ import annotations

import re

from mtp_jax.planning.costs import UPDATES
from mtp_jax.planning.hlo import Computation, Instruction, Module

_VIEWS = {"bitcast", "opt-barrier", "copy-done", "slice-done"}


def temporary_bytes(module: Module) -> float:
    """Greatest sum of the arrays that exist at a time, arguments and what replaces them apart.

    An array lives from the instruction that makes it to the last that reads it, directly or as
    part of a tuple; loops and updates of slices work in place. (The compiler's own allocation may
    be a few per cent larger, by fragmentation, or smaller, where it shares more.)
    """
    return _peak(module, module.computations[module.entry], module.aliased)


def _peak(module: Module, computation: Computation, outside: frozenset[int] | None) -> float:
    """Greatest sum of bytes that `computation` makes and has not let go of.

    Args:
        outside: places in its result that the caller has capacity for; None stands for all.
    """
    made: dict[str, float] = {}
    value: dict[str, list[set[str]]] = {}
    within: dict[str, float] = {}
    for i in computation.instructions:
        value[i.name] = _buffers(module, i, value, made)
        parts = [module.computations[n] for n in i.called if n in module.computations]
        if i.opcode == "while":
            within[i.name] = max(_peak(module, part, None) for part in parts)
        elif i.opcode in ("call", "conditional"):
            within[i.name] = max((_peak(module, part, frozenset()) for part in parts), default=0.0)
    end = len(computation.instructions)
    last = {name: at for at, i in enumerate(computation.instructions) for name in i.operands}
    until: dict[str, int] = {}
    for at, i in enumerate(computation.instructions):
        for buffer in set().union(*value[i.name]):
            until[buffer] = max(until.get(buffer, at), last.get(i.name, at))
    for place, buffers in enumerate(value[computation.root.name]):
        if outside is not None and place not in outside:
            until |= dict.fromkeys(buffers, end)
    live, peak = 0.0, 0.0
    gone = [0.0] * (end + 1)
    for at, i in enumerate(computation.instructions):
        own = {b for b in set().union(*value[i.name]) if b.rpartition("|")[0] == i.name}
        for buffer in own:
            live += made[buffer]
            gone[until[buffer]] += made[buffer]
        peak = max(peak, live + within.get(i.name, 0.0))
        live -= gone[at]
    return peak


def _buffers(
    module: Module,
    i: Instruction,
    value: dict[str, list[set[str]]],
    made: dict[str, float],
) -> list[set[str]]:
    """The arrays in memory that each part of the result of `i` is, newly `made` ones included."""
    operands = [value[name] for name in i.operands if name in value]
    if i.opcode in ("parameter", "constant"):
        return [set() for _ in i.shape]
    if i.opcode == "tuple":
        return [part for operand in operands for part in operand]
    if i.opcode == "get-tuple-element":
        place, source = int(i.attribute("index")), operands[0]
        if len(i.shape) == 1 and place < len(source):
            return [source[place]]
        return [set().union(*source) for _ in i.shape]
    if i.opcode in _VIEWS or "ConcatBitcast" in i.attributes:
        return [set().union(*(p for o in operands for p in o)) for _ in i.shape]
    if i.opcode == "while":
        return operands[0]
    in_place = _updated(module, i)
    prefetch = i.opcode in ("copy-start", "slice-start")  # of what, into what, and a context
    parts = []
    for place, array in enumerate(i.shape):
        if in_place.get(place, len(i.operands)) < len(i.operands):
            parts.append(set().union(*value.get(i.operands[in_place[place]], [])))
        elif array.hbm_bytes and (not prefetch or place == 1):
            made[f"{i.name}|{place}"] = array.hbm_bytes
            parts.append({f"{i.name}|{place}"})
        else:
            parts.append(set())
    return parts


def _updated(module: Module, i: Instruction) -> dict[int, int]:
    """Which parts of the result are operands with a slice written into them."""
    if i.opcode in UPDATES:
        return {0: 0}
    if i.opcode != "fusion" or not i.called or i.called[0] not in module.computations:
        found = re.findall(r"\{(\d*)\}: \((\d+), \{\}", i.attribute("output_to_operand_aliasing"))
        return {int(out or 0): int(operand) for out, operand in found}
    inner = module.computations[i.called[0]]
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    places = {}
    for place, result in enumerate(results):
        while result.opcode == "bitcast" and inner.operands(result):
            result = inner.operands(result)[0]
        if result.opcode not in UPDATES:
            continue
        base = inner.operands(result)[0]
        while base.opcode == "bitcast" and inner.operands(base):
            base = inner.operands(base)[0]
        if base.opcode == "parameter":
            places[place] = int(base.literal)
    return places
