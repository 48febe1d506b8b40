"""From a config and a slice to figures: each program compiled, weighed and timed."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from mtp_jax.config import Config, Mesh
from mtp_jax.distributed import sharding
from mtp_jax.inference.decoder_functions import PROMPT_BLOCK
from mtp_jax.models.build import build
from mtp_jax.models.recogniser import Recogniser, Vocabulary
from mtp_jax.planning import hlo, memory, model_flops, programs, roofline
from mtp_jax.planning.chips import Slice
from mtp_jax.planning.compiled import DoesNotFit, Task, compiled
from mtp_jax.planning.drafts import acceptance_needed, decoding_meshes
from mtp_jax.planning.meshes import factorisations
from mtp_jax.planning.programs import Load
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import TrainState, abstract_state

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Planner:
    """Compiles programs of one config for one slice.

    Attributes:
        config: of the run, sizes filled in.
        vocabulary: the tokenizer's.
        where: the slice.
        topology: its name.
        folder: keeps what was compiled.
        codegen: whether machine code is generated as well, which gives the compiler's own peak.
        weights: of what decodes, as of `programs.parameters`.
    """

    config: Config
    vocabulary: Vocabulary
    where: Slice
    topology: str
    folder: Path
    codegen: bool = False
    weights: str = ""

    @property
    def model(self) -> Recogniser:
        """The model that is planned for."""
        return build(self.config, self.vocabulary)

    def on(self, mesh: Mesh) -> Planner:
        """The same on another mesh."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, mesh=mesh))

    def sizes(self) -> tuple[int, int, int]:
        """Devices along data, fsdp and tensor.

        Raises:
            sharding.MeshError: they do not multiply to the slice.
        """
        mesh = self.config.mesh
        given = {axis: getattr(mesh, axis) for axis in sharding.AXES}
        fixed = math.prod(size for size in given.values() if size != -1)
        if self.where.chips % fixed or (-1 not in given.values() and fixed != self.where.chips):
            raise sharding.MeshError(
                f"config.mesh {given} does not make the {self.where.chips} chips of"
                f" {self.topology}: set one size to -1 to use the rest"
            )
        data, fsdp, tensor = (
            self.where.chips // fixed if size == -1 else size for size in given.values()
        )
        return data, fsdp, tensor

    def state(self) -> tuple[TrainState, TrainState]:
        """Shapes and shardings of the training state, with no device.

        Raises:
            sharding.MeshError: the mesh does not divide a parameter.
        """
        mesh: Any = AbstractMesh(self.sizes(), sharding.AXES)
        return abstract_state(self.model, make_optimizer(self.config.optim), mesh)

    def state_bytes(self) -> float:
        """Bytes of the training state on one chip."""
        return programs.bytes_of(programs.placed(*self.state()))

    def parameter_bytes(self) -> float:
        """Bytes of the parameters on one chip, as a decoder holds them.

        Raises:
            sharding.MeshError: the mesh does not divide one.
        """
        mesh: Any = AbstractMesh(self.sizes(), sharding.AXES)
        return programs.bytes_of(programs.parameters(self.model, mesh, self.weights))

    def train(self, load: Load) -> Row:
        """The training step."""
        row, estimate = self._row("train", load)
        if estimate is None:
            return row
        needed = self.step_flops(load) / self.where.chips
        return row | {
            "model_flops": needed,
            "step_seconds": estimate.seconds,
            "mfu": needed / (estimate.seconds * self.where.chip.flops),
            "tokens_per_second": load.rows * load.tokens / estimate.seconds,
            "audio_per_second": load.rows * load.seconds / estimate.seconds,
        }

    def step_flops(self, load: Load) -> float:
        """Operations that one step of the whole slice needs."""
        one = sharding.make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
        return model_flops.train_step_flops(self.model, one, load)

    def decode(self, strategy: str, load: Load) -> Row:
        """Front end, encoder, prefill, and the loop of decoder calls."""
        row, _ = self._row(strategy, load)
        if "flops" not in row:
            return row
        before, once = row.pop("before"), row.pop("once")
        call, heads = once - before, self.config.heads.count
        if strategy in ("greedy", "beam"):
            heads = 1
        most, least = load.tokens - 1, math.ceil((load.tokens - 1) / heads)
        return row | {
            "before_seconds": before,
            "call_seconds": call,
            "tokens_per_second": [
                load.rows * load.tokens / (before + calls * call) for calls in (most, least)
            ],
        }

    def call(self, rows: int, prompt: int, width: int) -> Row:
        """One decoder call out of a loop of them."""
        row, _ = self._row("call", Load(rows, 0.0, 0), width=width, prompt=prompt)
        if "flops" not in row:
            return row | {"width": width}
        seconds = row.pop("once") - row.pop("before")
        return row | {"width": width, "call_seconds": seconds}

    def widths(self, load: Load, widths: Sequence[int]) -> Iterator[Row]:
        """Decoding in calls of each of `widths`, the first of which is 1.

        Where the config names no mesh, it is the first of `decoding_meshes` that greedy decoding
        fits on. Of a wide call, ``acceptance`` is that of drafts from which it pays; None if none.
        """
        planner, narrow = self._on_first_that_fits(load)
        yield narrow
        for width in widths[1:] if narrow["fits"] else ():
            row = planner.width(load, width)
            if row["fits"]:
                ratio = row["call_seconds"] / narrow["call_seconds"]
                row |= {"acceptance": acceptance_needed(ratio, width)}
            yield row

    def width(self, load: Load, width: int) -> Row:
        """Decoding in calls so wide: greedily, or by verifying what as many heads draft."""
        layers = self.config.heads.layers if width > 1 else 0
        heads = dataclasses.replace(self.config.heads, count=width, layers=layers)
        planner = dataclasses.replace(self, config=dataclasses.replace(self.config, heads=heads))
        return planner.decode("verify" if width > 1 else "greedy", load) | {"width": width}

    def _on_first_that_fits(self, load: Load) -> tuple[Planner, Row]:
        """With greedy decoding there; the last mesh, if it fits on none."""
        if self.config.mesh != Mesh():
            return self, self.width(load, 1)
        planner, row = self, Row()
        for mesh in decoding_meshes(self.where.chips, load.rows):
            planner = self.on(mesh)
            if why := planner._cannot_hold("the parameters alone take", planner.parameter_bytes):
                row = planner._names("greedy", load) | {"fits": False, "why": why}
            else:
                row = planner.width(load, 1)
            if row["fits"]:
                break
        return planner, row

    def _cannot_hold(self, what: str, held: Callable[[], float]) -> str:
        """Why a chip cannot hold `what`, of so many bytes; empty if it can."""
        try:
            size = held()
        except sharding.MeshError as error:
            return str(error)
        return f"{what} {size / 2**30:.1f} GiB" if size > self.where.chip.hbm_bytes else ""

    def _names(self, program: str, load: Load) -> Row:
        """What a row is about."""
        data, fsdp, tensor = self.sizes()
        row: Row = {"program": program, "mesh": f"{data}x{fsdp}x{tensor}"}
        if program != "train":
            row["weights"] = self.weights or self.config.train.dtype
        return row | {"topology": self.topology, "chips": self.where.chips, **vars(load)}

    def sweep(self, load: Load) -> Iterator[Row]:
        """The training step on every mesh of the slice that its state fits on."""
        for mesh in factorisations(self.where.chips):
            planner = self.on(mesh)
            shape = f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}"
            if load.rows % (mesh.data * mesh.fsdp):
                yield {"mesh": shape, "fits": False, "why": "the batch does not divide"}
                continue
            if why := planner._cannot_hold("the state alone takes", planner.state_bytes):
                yield {"mesh": shape, "fits": False, "why": why}
                continue
            yield planner.train(load)

    def _prompt_blocks(self, load: Load) -> int:
        return math.ceil(programs.prompt_length(self.model, load) / PROMPT_BLOCK)

    def _row(
        self, program: str, load: Load, **options: int
    ) -> tuple[Row, roofline.Estimate | None]:
        row = self._names(program, load)
        task = Task(
            config=self.config,
            vocabulary=self.vocabulary,
            topology=self.topology,
            program=program,
            codegen=self.codegen,
            weights="" if program == "train" else self.weights,
            **vars(load),
            **options,
        )
        try:
            made = compiled(task, self.folder)
        except DoesNotFit as error:
            return row | {"fits": False, "why": str(error)}, None
        module = hlo.parse(made.text)
        # The longest prompt fills all of its blocks; else each loop counts once.
        has_prompt = program not in ("train", "call")
        trips = {programs.READS_PROMPT: self._prompt_blocks(load)} if has_prompt else {}
        calls = trips | {programs.EXTENDS: 1, "": 1}
        estimate = roofline.estimate(module, self.where, made.coordinates, calls)
        temporary = memory.temporary_bytes(module)
        peak = made.peak or made.arguments + temporary
        if program != "train":
            none = dict.fromkeys(calls, 0) | trips
            still = roofline.estimate(module, self.where, made.coordinates, none)
            row |= {"before": still.seconds, "once": estimate.seconds}
        if program == "call":  # without what comes before the loop
            estimate.add(still, -1)
        return row | {
            "argument_bytes": made.arguments,
            "temporary_bytes": temporary,
            "peak_bytes": peak,
            "fits": peak <= self.where.chip.hbm_bytes,
            "why": "" if peak <= self.where.chip.hbm_bytes else "too little memory",
            "flops": estimate.flops,
            "hbm_bytes": estimate.hbm_bytes,
            "compute_seconds": estimate.compute_seconds,
            "hbm_seconds": estimate.hbm_seconds,
            "ici_seconds": estimate.ici_seconds,
            "exposed_ici_seconds": estimate.exposed_ici_seconds,
            "cycles": estimate.cycles,
            "collectives": _collectives(estimate),
            "spent": dict(estimate.spent.most_common(30)),
            "compile_seconds": made.seconds,
        }, estimate


def _collectives(estimate: roofline.Estimate) -> list[Row]:
    """By kind and chips: how many, and their bytes."""
    found: dict[tuple[str, int], collections.Counter[float]] = {}
    for (kind, size, chips), count in estimate.traffic.items():
        if count:
            found.setdefault((kind, chips), collections.Counter())[size] += count
    return [
        {
            "kind": kind,
            "chips": chips,
            "count": sum(sizes.values()),
            "bytes": sum(size * count for size, count in sizes.items()),
            "largest": max(sizes),
        }
        for (kind, chips), sizes in sorted(found.items())
    ]
