"""Compiles one program in a process of its own; `mtp_jax.planning.compiled` starts it.

python -m mtp_jax.planning.worker TASK.json RESULT.json.gz DUMP_FOLDER ERROR
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from mtp_jax.config import ConfigError
from mtp_jax.distributed import sharding
from mtp_jax.models.build import build
from mtp_jax.planning import programs
from mtp_jax.planning.chips import Slice, TopologyError
from mtp_jax.planning.compiled import Task


def main(task: Path, result: Path, dump: Path, error: Path) -> None:
    try:
        compile_task(Task.from_json(task.read_text()), result, dump)
    except (ConfigError, sharding.MeshError, TopologyError) as refused:
        error.write_text(str(refused))


def lowered(task: Task, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """The program of `task`, in terms of shapes, and the shapes of its arguments."""
    model = build(task.config, task.vocabulary)
    load = programs.Load(task.rows, task.seconds, task.tokens)
    if task.program == "train":
        return programs.lower_train_step(model, mesh, load)
    if task.program == "call":
        return programs.lower_calls(model, mesh, task.rows, task.prompt, task.width, task.weights)
    strategy = programs.strategy_of(task.config, task.program)
    return programs.lower_decode(model, mesh, load, strategy, task.weights)


def compile_task(task: Task, result: Path, dump: Path) -> None:
    """Writes what the compiler makes of `task`; without code generation the process ends there."""
    where = Slice.parse(task.topology)
    mesh = sharding.make_mesh(task.config.mesh, programs.chips_of(where))
    program, given = lowered(task, mesh)
    start = time.perf_counter()

    def keep(text: str, peak: int | None) -> None:
        values = {
            "text": text,
            "arguments": programs.bytes_of(given),
            "coordinates": programs.coordinates(mesh, where),
            "peak": peak,
            "seconds": time.perf_counter() - start,
        }
        _write(result, values)

    def watch() -> None:
        keep(_scheduled(dump), None)
        os._exit(0)  # what the compiler goes on with is not needed

    if not task.codegen:
        threading.Thread(target=watch, daemon=True).start()
    try:
        done = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _write(result, {"too_large": str(error).splitlines()[0]})
        return
    memory = done.memory_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    keep(done.as_text(), peak)


def _scheduled(folder: Path) -> str:
    """The scheduled program, as soon as the compiler has written it and gone on."""
    while True:
        # This file is the next but one after the program's.
        for later in sorted(folder.glob("*-TLP-0?-original.txt")):
            stem = later.name.partition("-TLP")[0]
            return (folder / f"{stem}-TLP-hlo.txt").read_text()
        time.sleep(0.2)


def _write(file: Path, values: dict[str, Any]) -> None:
    """All of it, or nothing."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(gzip.compress(json.dumps(values).encode()))
    part.replace(file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
