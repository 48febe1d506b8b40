"""Collective operations: which chips take part, and how long the torus needs for their bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from mtp_jax.planning.chips import Slice
from mtp_jax.planning.hlo import Computation, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
HOP_SECONDS = 1e-6  # latency of one link: https://jax-ml.github.io/scaling-book/sharding


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, once.

    Attributes:
        kind: of `KINDS`.
        bytes: of the whole array, on every chip: what a gather makes, what a reduction begins with.
        group: ids of the chips that take part with the first one.
        seconds: on an otherwise idle interconnect.
    """

    kind: str
    bytes: float
    group: tuple[int, ...]
    seconds: float

    def scattered(self) -> Collective:
        """An all-reduce of which each chip keeps only its part."""
        return dataclasses.replace(self, kind="reduce-scatter", seconds=self.seconds / 2)


def kind_of(instruction: Instruction) -> str:
    """Of `KINDS`; empty for what is none, and for the end of one that was started before."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in KINDS else ""


def read(
    computation: Computation,
    instruction: Instruction,
    where: Slice,
    coordinates: Sequence[Sequence[int]],
) -> Collective:
    """The collective that `instruction` is.

    Args:
        computation: that it stands in.
        where: the slice.
        coordinates: of each chip on the torus, in the order of the program's ids.
    """
    kind = kind_of(instruction)
    made = sum(a.bytes for a in instruction.shape)
    given = sum(a.bytes for x in computation.operands(instruction) for a in x.shape)
    if instruction.opcode.endswith("-start"):
        made -= given  # a start's result repeats its operand
    size = max(made, given)
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attributes)
        group = tuple(int(x) for x in pairs[0]) if pairs else (0,)
        hops = max((_hops(where, coordinates, int(a), int(b)) for a, b in pairs), default=1)
        seconds = given * hops / where.chip.link_bandwidth + hops * HOP_SECONDS
        return Collective(kind, given, group, seconds)
    group = groups(instruction.attributes, len(coordinates))[0]
    return Collective(kind, size, group, seconds_of(kind, size, group, where, coordinates))


def seconds_of(
    kind: str,
    size: float,
    group: Sequence[int],
    where: Slice,
    coordinates: Sequence[Sequence[int]],
) -> float:
    """Time of a collective on rings along every axis of the torus that its group spans.

    A chip must take in, or hand on, all of the array but its own part, over the links that lead
    into it: one for each axis, two where its ends are joined. An all-reduce is a reduce-scatter
    and an all-gather. Of an all-to-all a quarter is moved on joined axes, as nothing has to go all
    the way round (https://jax-ml.github.io/scaling-book/sharding), and half on open ones.

    Args:
        kind: of `KINDS`, no permutation.
        size: bytes of the whole array.
        group, where, coordinates: as in `Collective` and `read`.
    """
    count = len(group)
    if count < 2:
        return 0.0
    places = np.array([coordinates[i] for i in group])
    links, hops, wrapped = 0, 0, True
    for axis, full in enumerate(where.shape):
        spanned = len(np.unique(places[:, axis]))
        if spanned > 1:
            # Part of an axis is a line, whose ends are not joined.
            joined = where.wrapped[axis] and spanned == full > 2
            links += 2 if joined else 1
            hops += spanned // 2 if joined else spanned - 1
            wrapped &= joined
    moved = size * (count - 1) / count
    if kind == "all-reduce":
        moved, hops = 2 * moved, 2 * hops
    elif kind == "all-to-all":
        moved *= 0.25 if wrapped else 0.5
    return moved / (links * where.chip.link_bandwidth) + hops * HOP_SECONDS


def _hops(where: Slice, coordinates: Sequence[Sequence[int]], a: int, b: int) -> int:
    total = 0
    for axis, full in enumerate(where.shape):
        far = abs(coordinates[a][axis] - coordinates[b][axis])
        total += min(far, full - far) if where.wrapped[axis] else far
    return max(1, total)


def groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """Ids of the chips that exchange with each other, in any of HLO's three spellings.

    >>> groups("replica_groups={{0,1},{2,3}}, x", 4)
    [(0, 1), (2, 3)]
    >>> groups("replica_groups=[2,2]<=[2,2]T(1,0), x", 4)
    [(0, 2), (1, 3)]
    >>> groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", 4)
    [(0, 1), (2, 3)]
    """
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return [
            tuple(int(x) for x in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", found.group(1))
        ]
    pattern = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(pattern, attributes):
        rows, columns, sizes, order = found.groups()
        ids = _grid(sizes)
        ids = ids.transpose([int(x) for x in order.split(",")]) if order else ids
        return _rows(ids.reshape(int(rows), int(columns)))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'?([\w]+)'?=(\d+)", found.group(1)))
        ids, names = _grid(",".join(sizes.values())), list(sizes)
        # A part of an axis is written 'name':(what comes before)size.
        parts = re.findall(r"'?([A-Za-z]\w*)'?(?::\((\d+)\)(\d+))?", found.group(2))
        return _rows(_along(ids, names, parts))
    return [tuple(range(devices))]


def _grid(sizes: str) -> np.ndarray:
    dims = [int(x) for x in sizes.split(",")]
    return np.arange(math.prod(dims)).reshape(dims)


def _rows(ids: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(x) for x in row) for row in ids]


def _along(ids: np.ndarray, names: list[str], parts: list[tuple[str, str, str]]) -> np.ndarray:
    """`ids` as rows along the named axes, or parts of them."""
    shape, chosen = list[int](), list[int]()
    for axis, name in enumerate(names):
        size, mine = ids.shape[axis], [p for p in parts if p[0] == name]
        if mine and mine[0][1]:
            before, part = int(mine[0][1]), int(mine[0][2])
            chosen.append(len(shape) + 1)
            shape += [before, part, size // before // part]
        else:
            chosen += [len(shape)] if mine else []
            shape.append(size)
    ids = ids.reshape(shape)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    count = math.prod(shape[axis] for axis in chosen)
    return ids.transpose(rest + chosen).reshape(-1, count)
