"""Operations and memory traffic of one instruction of optimised HLO."""

from __future__ import annotations

import re

from mtp_jax.planning.hlo import Computation, Instruction, Module

# They move nothing: they name, group or view what is there.
FREE = {
    "after-all", "bitcast", "constant", "get-tuple-element", "iota", "opt-barrier", "parameter",
    "partition-id", "replica-id", "tuple", "while", "call", "conditional",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding")
# They write into their first operand, in place, what the operand in this place holds.
UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
_SLICES = {"dynamic-slice", "slice", "gather"}
_VIEWS = {"bitcast", "copy", "convert", "reshape", "transpose"}


def flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Operations of the matrix products in `instruction`, and in what it is fused of.

    Elementwise work is left out: the vector units do it beside the matrix units, and it is bound
    by memory.
    """
    if instruction.opcode in ("dot", "convolution"):
        operands = computation.operands(instruction)
        count = _dot if instruction.opcode == "dot" else _convolution
        return count(instruction, operands) if len(operands) == 2 else 0.0
    if instruction.opcode in ("while", "call", "conditional"):
        return 0.0  # what they run is scheduled, and counted by itself
    return sum(
        flops(module, inner, i)
        for name in instruction.called
        if (inner := module.computations.get(name))
        for i in inner.instructions
    )


def _dot(instruction: Instruction, operands: list[Instruction]) -> float:
    contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    sizes = operands[0].shape[0].dims
    total = 2.0 * instruction.shape[0].elements
    for axis in contracted:
        total *= sizes[int(axis)]
    return total


def _convolution(instruction: Instruction, operands: list[Instruction]) -> float:
    """Products that are made; those with the zeros of padding and dilation are not.

    (On a TPU every product is a convolution, a batched one over dilated axes.)
    """
    left, right, out = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels")).groups()  # type: ignore[union-attr]
    lhs, rhs, result = (x.shape[0].dims for x in (*operands, instruction))
    total = 2.0 * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in found.group(1).split()) if found else {}
    spatial = [c for c in out if c.isdigit()]

    def numbers(name: str, default: int) -> list[int]:
        return (
            [int(x) for x in fields[name].split("x")]
            if name in fields
            else [default] * len(spatial)
        )

    size, stride = numbers("size", 1), numbers("stride", 1)
    dilated, spread = numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * len(spatial)
    for label in spatial:
        n = int(label)
        low = int(pads[n].split("_")[0])
        total *= _pairs(
            lhs[left.index(label)],
            result[out.index(label)],
            size[n],
            stride[n],
            low,
            dilated[n],
            spread[n],
        )
    return total


def _pairs(
    inputs: int, outputs: int, size: int, stride: int, low: int, dilated: int, spread: int
) -> int:
    """Pairs of an output place and a tap of the window that meet an input place."""
    return sum(
        0 <= place <= (inputs - 1) * dilated and place % dilated == 0
        for out in range(outputs)
        for tap in range(size)
        for place in [out * stride + tap * spread - low]
    )


def passes(module: Module, instruction: Instruction) -> int:
    """How often the matrix units go over the products of `instruction`.

    They multiply bfloat16: float32 factors are made of three, "highest" precision of six products
    of parts.
    """
    if found := re.search(r"operand_precision=\{(\w+)", instruction.attributes):
        return {"highest": 6, "high": 3}.get(found.group(1), 1)
    inner = [module.computations[n] for n in instruction.called if n in module.computations]
    if instruction.opcode in ("while", "call", "conditional"):
        return 1
    return max((passes(module, i) for c in inner for i in c.instructions), default=1)


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that `instruction` reads from the large memory and writes to it.

    Of an operand that is only sliced, the slices count; of a result that updates an operand in
    place, the update.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if any(f'custom_call_target="{name}"' in instruction.attributes for name in _FREE_CALLS):
        return 0.0
    operands = computation.operands(instruction)
    if instruction.opcode in ("copy-start", "slice-start"):
        # Result: what is read, what is written, and a context.
        moved = instruction.shape[1]
        return sum(moved.bytes for x in (operands[0].shape[0], moved) if not x.on_chip)
    if instruction.opcode in _SLICES:
        read = 0.0 if operands[0].shape[0].on_chip else instruction.shape[0].bytes
        return _moved(instruction) + read
    if instruction.opcode in UPDATES:
        update = operands[UPDATES[instruction.opcode]].shape[0]
        return update.hbm_bytes + (0.0 if instruction.shape[0].on_chip else update.bytes)
    if instruction.opcode == "fusion" and (inner := module.computations.get(instruction.called[0])):
        return _fused(module, inner, operands, instruction)
    return _moved(instruction) + sum(a.hbm_bytes for x in operands for a in x.shape)


def _moved(instruction: Instruction) -> float:
    return sum(a.hbm_bytes for a in instruction.shape)


def _fused(
    module: Module, inner: Computation, operands: list[Instruction], fusion: Instruction
) -> float:
    parameters = inner.parameters
    total, updated = 0.0, set[str]()
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    for result, array in zip(results, fusion.shape, strict=False):
        source = _seen_through(inner, result)
        if source.opcode in UPDATES:
            base, update = (inner.operands(source)[n] for n in (0, UPDATES[source.opcode]))
            updated.add(_seen_through(inner, base).name)
            total += 0.0 if array.on_chip else update.shape[0].bytes
        else:
            total += array.hbm_bytes
    for place, operand in enumerate(operands):
        if place not in parameters or parameters[place].name in updated:
            continue
        whole = sum(a.hbm_bytes for a in operand.shape)
        if whole:
            total += min(whole, _read(module, inner, parameters[place]))
    return total


def _seen_through(inner: Computation, instruction: Instruction) -> Instruction:
    """What `instruction` is a view of."""
    while instruction.opcode in _VIEWS and (operands := inner.operands(instruction)):
        instruction = operands[0]
    return instruction


def _read(module: Module, inner: Computation, value: Instruction) -> float:
    """Bytes of `value` that are looked at."""
    array, total = value.shape[0], 0.0
    if value.root:
        return array.bytes
    for reader in inner.readers.get(value.name, ()):
        if reader.opcode in _SLICES and reader.operands[0] == value.name:
            total += reader.shape[0].elements * array.bytes / max(1, array.elements)
        elif reader.opcode == "bitcast":
            total += _read(module, inner, reader)
        elif reader.opcode == "fusion" and reader.called[0] in module.computations:
            within = module.computations[reader.called[0]]
            for place in (i for i, name in enumerate(reader.operands) if name == value.name):
                given = within.parameters[place]
                viewed = _seen_through(within, within.root) is given
                where, what = (inner, reader) if viewed else (within, given)
                total += _read(module, where, what)
        else:
            return array.bytes
    return min(total, array.bytes)
