"""Time of a program on a chip: its schedule walked through, each instruction at its bound."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mtp_jax.planning import collectives, costs
from mtp_jax.planning.chips import Slice
from mtp_jax.planning.collectives import Collective
from mtp_jax.planning.hlo import Computation, Instruction, Module, trip_count


@dataclasses.dataclass
class Estimate:
    """What a program, or a part of it, costs one chip.

    Attributes:
        flops: of matrix products, recomputation included.
        hbm_bytes: moved.
        seconds: see `walk`.
        compute_seconds, hbm_seconds, ici_seconds: each by itself, at the published rates.
        exposed_ici_seconds: of the last, what no computation hides.
        cycles: that the compiler says its fusions take, at most of what it says of each.
        traffic: (kind, bytes of one, chips that take part) of each collective, and how often.
        spent: seconds by the name of the operation in the traced program.
        open_loops: loops whose trips depend on the data; each counts once.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    hbm_seconds: float = 0.0
    ici_seconds: float = 0.0
    exposed_ici_seconds: float = 0.0
    cycles: float = 0.0
    traffic: collections.Counter[tuple[str, float, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    spent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    open_loops: int = 0

    def add(self, other: Estimate, times: int = 1) -> None:
        """Adds `other`, that many times over."""
        for field in dataclasses.fields(self):
            if field.name in ("traffic", "spent"):
                mine, theirs = getattr(self, field.name), getattr(other, field.name)
                for key, count in theirs.items():
                    mine[key] += times * count
            elif field.name == "open_loops":
                self.open_loops += other.open_loops
            else:
                mine, theirs = getattr(self, field.name), getattr(other, field.name)
                setattr(self, field.name, mine + times * theirs)


def estimate(
    module: Module,
    where: Slice,
    coordinates: Sequence[Sequence[int]],
    loop_trips: Mapping[str, int] = MappingProxyType({"": 1}),
) -> Estimate:
    """What running `module` once costs each chip.

    Assumptions:

    - instructions run one after another, as the compiler scheduled them; within one, matrix units
      and memory work at the same time, each at its published rate: the slower one counts;
    - a collective that the compiler made asynchronous goes on beside what stands between its start
      and its end, one collective at a time; what is left at its end is waited for. Others are
      waited for whole. Copies into the chip's own memory that were started ahead use the memory
      bandwidth that the instructions beside them leave over;
    - arrays the compiler put into the chip's own memory cost nothing to read and write.

    Args:
        module: optimised for `where`.
        where: the slice.
        coordinates: of each chip, in the order of the program's ids.
        loop_trips: how often loops run whose trips depend on the data, by a part of traced names:
            that which most operations within have in theirs counts, and "" where none has any. (The
            compiler may let two loops share a computation, under a name from one of them.)
    """
    return _walk(module, module.computations[module.entry], where, coordinates, loop_trips)


def _walk(
    module: Module,
    computation: Computation,
    where: Slice,
    coordinates: Sequence[Sequence[int]],
    loop_trips: Mapping[str, int],
) -> Estimate:
    total, chip = Estimate(), where.chip
    started: dict[str, float] = {}  # seconds left of asynchronous collectives, in order
    copies: dict[str, float] = {}  # the same of copies
    pieces = _last_piece(module, computation)

    def pass_time(seconds: float, hbm: float, name: str = "") -> None:
        total.seconds += seconds
        if name and seconds:
            total.spent[name] += seconds  # type: ignore[assignment]
        _drain(started, seconds)
        _drain(copies, max(0.0, seconds - hbm))

    for i in computation.instructions:
        inner: Estimate | None = None
        if i.opcode == "while":
            trips = trip_count(module, computation, i)
            body = module.computations[i.attribute("body").lstrip("%")]
            inner = Estimate(open_loops=trips is None)
            once = _walk(module, body, where, coordinates, loop_trips)
            if trips is None:
                trips = _trips(_traced_names(module, body), loop_trips)
            inner.add(once, trips)
        elif i.opcode in ("call", "conditional"):
            branches = [
                _walk(module, module.computations[name], where, coordinates, loop_trips)
                for name in i.called
            ]
            inner = max(branches, key=lambda e: e.seconds, default=Estimate())
        if inner is not None:
            total.add(dataclasses.replace(inner, seconds=0.0))
            pass_time(inner.seconds, inner.hbm_seconds)
            continue

        operations = costs.flops(module, computation, i)
        moved = costs.hbm_bytes(module, computation, i)
        passes = costs.passes(module, i)
        compute, hbm = passes * operations / chip.flops, moved / chip.hbm_bandwidth
        total.flops += operations
        total.hbm_bytes += moved
        total.compute_seconds += compute
        total.hbm_seconds += hbm
        total.cycles += _cycles(i)

        found = _collective(module, computation, i, where, coordinates)
        key = i.channel or (found[1] if found else "") or i.name
        if found and key not in started:
            what = found[0]
            total.traffic[what.kind, what.bytes, len(what.group)] += 1
            total.ici_seconds += what.seconds
            started[key] = what.seconds
        if i.opcode in ("copy-start", "slice-start"):
            copies[i.name] = hbm
            continue
        name = _traced_name(i)
        pass_time(max(compute, hbm), hbm, name)
        if i.opcode in ("copy-done", "slice-done") and i.operands:
            pass_time(_take(copies, i.operands[0]), 0.0, "copies")
        for channel in [c for c, last in pieces.items() if last == i.name and c in started]:
            # What is waited for goes out first, but those before it hold the links.
            waited = _take(started, channel)
            total.exposed_ici_seconds += waited
            pass_time(waited, 0.0, "collectives")
    return total


def _take(queue: dict[str, float], key: str) -> float:
    """Seconds until `key` is through, with all that is ahead of it; these are then through too."""
    waited = 0.0
    while key in queue:
        first = next(iter(queue))
        waited += queue.pop(first)
    return waited


def _drain(queue: dict[str, float], seconds: float) -> None:
    for key in queue:
        done = min(queue[key], seconds)
        queue[key] -= done
        seconds -= done


def _collective(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    where: Slice,
    coordinates: Sequence[Sequence[int]],
) -> tuple[Collective, str] | None:
    """The collective that `instruction` is or has within it, and its channel."""
    if collectives.kind_of(instruction):
        return collectives.read(computation, instruction, where, coordinates), instruction.channel
    if instruction.opcode in ("while", "call", "conditional"):
        return None
    for name in instruction.called:
        if inner := module.computations.get(name):
            for i in inner.instructions:
                if found := _collective(module, inner, i, where, coordinates):
                    # So the compiler for TPUs writes down a reduce-scatter.
                    if name.startswith("all-reduce-scatter"):
                        return found[0].scattered(), found[1]
                    return found
    return None


def _last_piece(module: Module, computation: Computation) -> dict[str, str]:
    """Of each collective, by its channel or name: the instruction behind which it is over."""
    last: dict[str, str] = {}
    begun: dict[str, str] = {}
    for i in computation.instructions:
        key = _channel(module, i) or (i.name if collectives.kind_of(i) else "")
        if not key and i.opcode.endswith("-done") and i.operands:
            key = begun.get(i.operands[0], "")
        if key:
            last[key], begun[i.name] = i.name, key
    return last


def _channel(module: Module, instruction: Instruction) -> str:
    """Of the collective that `instruction` is a piece of; empty if it is of none."""
    if collectives.kind_of(instruction):
        return instruction.channel
    if instruction.opcode in ("while", "call", "conditional"):
        return ""
    for name in instruction.called:
        if inner := module.computations.get(name):
            for i in inner.instructions:
                if channel := _channel(module, i):
                    return channel
    return ""


def _traced_names(module: Module, computation: Computation) -> set[str]:
    """Of all that a computation runs."""
    found = {_traced_name(i) for i in computation.instructions}
    called = {name for i in computation.instructions for name in i.called}
    return found.union(*(_traced_names(module, module.computations[name]) for name in called))


def _trips(names: set[str], loop_trips: Mapping[str, int]) -> int:
    """Of a loop with these traced names within."""
    counts = {part: sum(part in name for name in names) for part in loop_trips if part}
    most = max(counts, key=counts.__getitem__, default="")
    return loop_trips[most if counts.get(most) else ""]


def _traced_name(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found.group(1) if found else instruction.opcode


def _cycles(instruction: Instruction) -> float:
    """That the compiler estimates for a fusion."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return float(found.group(1)) if found else 0.0
