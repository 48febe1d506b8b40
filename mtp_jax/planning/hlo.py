"""Optimised HLO text, taken apart: computations, instructions, shapes, trip counts of loops.

Only what costs are counted from is read. The grammar is that of ``HloModule::ToString`` (XLA,
hlo_lexer.cc and hlo_parser.cc).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "s2": 2, "u2": 2,
}  # fmt: skip

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
        dtype, dims: of its elements.
        on_chip: whether it is kept in the chip's own memory (a memory space other than 0).
        places: for elements in memory: the innermost axes fill whole tiles.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    places: int

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """With the padding of its layout."""
        return self.places * _BITS.get(self.dtype, 0) / 8

    @property
    def hbm_bytes(self) -> float:
        """Bytes it takes of the large memory."""
        return 0.0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name, opcode: of it.
        shape: arrays it makes: one, or those of a tuple, flattened.
        operands: names.
        attributes: everything behind the operands.
    """

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool = False
    literal: str = ""

    def attribute(self, name: str) -> str:
        """The text of an attribute; empty if there is none."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs."""
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)

    @property
    def channel(self) -> str:
        """Of a collective: its pieces have the same one."""
        return self.attribute("channel_id")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of their schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """What it is given, by place."""
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter"}

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {}
        for i in self.instructions:
            for name in dict.fromkeys(i.operands):
                found.setdefault(name, []).append(i)
        return found

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that `instruction` reads."""
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name.
        entry: the one that is run.
        aliased: places in its result that are written into an argument.
    """

    computations: dict[str, Computation]
    entry: str
    aliased: frozenset[int] = frozenset()


def parse(text: str) -> Module:
    """Reads optimised HLO.

    Raises:
        ValueError: it has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", list[Instruction]()
    for line in text.splitlines():
        if not line[:1].isspace():
            if found := _COMPUTATION.match(line):
                name, lines = found.group(2), []
                entry = name if found.group(1) else entry
            elif line.startswith("}") and name:
                computations[name] = Computation(name, tuple(lines))
                name = ""
        elif name and (line_of := _INSTRUCTION.match(line)):
            root, its_name, rest = line_of.groups()
            lines.append(_instruction(its_name, rest, root is not None))
    if entry not in computations:
        raise ValueError("the text holds no ENTRY computation: it is not optimised HLO")
    head = text[: text.index("\n")] if text.startswith("HloModule") else ""
    aliases = re.search(r"input_output_alias=\{(.*?\)) \}", head)
    places = re.findall(r"\{(\d*)\}: \(", aliases.group(1)) if aliases else []
    return Module(computations, entry, frozenset(int(p or 0) for p in places))


def arrays(shape: str) -> tuple[Array, ...]:
    """Arrays of a shape such as ``(f32[8,128]{1,0:T(8,128)S(1)}, s32[])``.

    >>> arrays("bf16[8,64]{1,0:T(8,128)(2,1)S(1)}")
    (Array(dtype='bf16', dims=(8, 64), on_chip=True, places=1024),)
    """
    found = []
    for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", shape)):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        on_chip = space is not None and space.group(1) != "0"
        found.append(Array(dtype, sizes, on_chip, _places(sizes, layout)))
    return tuple(found)


def _places(dims: tuple[int, ...], layout: str) -> int:
    """Places in memory of an array, with those that only fill tiles."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if tile is None:
        return math.prod(dims)
    sizes = [dims[int(axis)] for axis in order.split(",") if axis]  # the innermost first
    for n, step in enumerate(map(int, reversed(tile.group(1).split(",")))):
        if n < len(sizes):
            sizes[n] = -(-sizes[n] // step) * step
    return math.prod(sizes)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    rest = _COMMENT.sub("", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:]
    opcode = _OPCODE.match(rest)
    if opcode is None:
        raise ValueError(f"instruction {name!r} has no opcode: the text is not HLO")
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    return Instruction(
        name=name,
        opcode=opcode.group(1),
        shape=arrays(shape),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        attributes=rest[close + 1 :].lstrip(", "),
        root=root,
        literal=inside if opcode.group(1) in ("constant", "parameter") else "",
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a ``while`` runs its body; None if that depends on the data.

    It is read off the compiler's annotation, or off a condition that compares a counter, which
    begins at a constant and grows by another (0 and 1, if these are not written down).
    """
    if known := re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes):
        return int(known.group(1))
    condition = module.computations[loop.attribute("condition").lstrip("%")]
    test = condition.root
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    sides = condition.operands(test)
    if len(sides) != 2 or sides[1].opcode != "constant" or sides[0].opcode != "get-tuple-element":
        return None
    limit, place = int(sides[1].literal), int(sides[0].attribute("index"))
    start = _constant_at(computation, loop, place) or 0
    body = module.computations[loop.attribute("body").lstrip("%")]
    return -(-(limit - start) // _step(body, place))


def _step(body: Computation, place: int) -> int:
    """What a loop adds to its counter in each trip."""
    if body.root.opcode != "tuple":
        return 1
    grown = body.by_name[body.root.operands[place]]
    found = [int(i.literal) for i in body.operands(grown) if i.opcode == "constant"]
    return found[0] if grown.opcode == "add" and found else 1


def _constant_at(computation: Computation, loop: Instruction, place: int) -> int | None:
    """The integer that a loop's counter starts with, if it is written down."""
    carried = computation.by_name[loop.operands[0]]
    if carried.opcode != "tuple":
        return None
    start = computation.by_name[carried.operands[place]]
    while start.opcode in ("copy", "bitcast") and start.operands:
        start = computation.by_name[start.operands[0]]
    return int(start.literal) if start.opcode == "constant" else None
