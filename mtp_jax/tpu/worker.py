"""Compiles one program in a process of its own; `mtp_jax.tpu.compiled` starts it.

python -m mtp_jax.tpu.worker TASK.json ANSWER.json FOLDER
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mtp_jax import sharding
from mtp_jax.config import ConfigError
from mtp_jax.nn.speech_llama import SpeechLlama, Vocabulary
from mtp_jax.tpu import programs
from mtp_jax.tpu.chips import Slice, TopologyError
from mtp_jax.tpu.compiled import Task

Answer = dict[str, Any]


def main(spec: str, answer: str, folder: str) -> None:
    task = Task.from_json(Path(spec).read_text())
    try:
        file = _compile(task, Path(folder), Path(answer))
    except (ConfigError, sharding.MeshError, TopologyError) as error:
        _write(Path(answer), json.dumps({"error": str(error)}).encode())
    else:
        _write(Path(answer), json.dumps({"file": file.name}).encode())


def lowered(task: Task, mesh: jax.sharding.Mesh) -> Any:
    """The program of `task`, in terms of shapes."""
    vocabulary = Vocabulary(task.vocabulary, bos=1, eos=2, labels=task.labels)
    model = SpeechLlama(task.config, vocabulary)
    load = programs.Load(task.rows, task.seconds, task.tokens)
    if task.program == "train":
        return programs.lower_train_step(model, mesh, load)
    if task.program == "call":
        return programs.lower_call(model, mesh, task.rows, task.prompt, task.width)
    strategy = programs.strategies(task.config)[task.program]
    return programs.lower_decode(model, mesh, load, strategy)


def _compile(task: Task, folder: Path, answer: Path) -> Path:
    """Compiles `task` into a file of `folder`, unless it is there."""
    where = Slice.parse(task.topology)
    mesh = sharding.make_mesh(task.config.mesh, programs.chips_of(where))
    program, given = lowered(task, mesh)
    arguments = sum(_local_bytes(x) for x in jax.tree.leaves(given))
    key = hashlib.sha256(program.as_text().encode())
    key.update(f"{task.topology} {task.codegen} {_versions()} {_flags()}".encode())
    file = folder / f"{key.hexdigest()[:32]}.json.gz"
    if file.exists():
        return file
    start = time.perf_counter()

    def keep(**values: Any) -> None:
        _write(file, gzip.compress(json.dumps(values).encode()))

    def result(text: str, peak: int | None) -> None:
        keep(
            text=text,
            arguments=arguments,
            coordinates=programs.coordinates(mesh, where),
            peak=peak,
            seconds=time.perf_counter() - start,
        )

    def watch() -> None:
        text = _scheduled(Path(os.environ["MTP_JAX_DUMP"]))
        result(text, None)
        _write(answer, json.dumps({"file": file.name}).encode())
        os._exit(0)  # what the compiler goes on with is not needed

    if not task.codegen:
        threading.Thread(target=watch, daemon=True).start()
    try:
        done = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        keep(too_large=str(error).splitlines()[0])
        return file
    memory = done.memory_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    result(done.as_text(), peak)
    return file


def _local_bytes(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape)
    size: int = x.dtype.itemsize
    for n in shape:
        size *= n
    return size


def _scheduled(folder: Path) -> str:
    """The scheduled program, as soon as the compiler has written it and gone on."""
    for done in _polls(lambda: sorted(folder.glob("*-TLP-0?-original.txt"))):
        stem = done[-1].name.partition("-TLP")[0]
        return (folder / f"{stem}-TLP-hlo.txt").read_text()
    raise AssertionError


def _polls(look: Any) -> Iterator[Any]:
    while True:
        if found := look():
            yield found
        time.sleep(0.2)


def _flags() -> str:
    """The compiler's, those apart by which it is made to write what it did."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    return " ".join(flag for flag in flags if not flag.startswith("--xla_jf_dump"))


def _versions() -> str:
    from importlib import metadata

    return " ".join(metadata.version(name) for name in ("jax", "libtpu"))


def _write(file: Path, content: bytes) -> None:
    """All of it, or nothing."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
