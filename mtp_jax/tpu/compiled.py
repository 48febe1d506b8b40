"""Compiling for a TPU, once: what the compiler said is kept on disk."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program.

    Attributes:
        text: optimised HLO.
        arguments, outputs, aliased, temporaries, code, peak: bytes a chip; aliased ones are
            arguments whose place an output takes, and the peak is of all at a time.
        seconds: that compilation took.
    """

    text: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    peak: int
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes a chip must have: what lives on, what is made, and the program."""
        live = self.arguments + self.outputs - self.aliased + self.temporaries
        return max(self.peak, live) + self.code


class DoesNotFit(Exception):
    """The compiler found no way to run a program within the memory of a chip."""


def compiled(lowered: Any, folder: Path | None) -> Compiled:
    """Compiles `lowered`, unless `folder` holds what came of it before.

    Raises:
        DoesNotFit: a chip has too little memory.
    """
    key = hashlib.sha256(lowered.as_text().encode())
    key.update(repr((jax.__version__, _libtpu_version(), _devices(lowered))).encode())
    file = folder / f"{key.hexdigest()[:32]}.json.gz" if folder else None
    if file and file.exists():
        kept = json.loads(gzip.decompress(file.read_bytes()))
        if "too_large" in kept:
            raise DoesNotFit(kept["too_large"])
        return Compiled(**kept)
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        if file:
            _write(file, {"too_large": reason})
        raise DoesNotFit(reason) from error
    memory = program.memory_analysis()
    made = Compiled(
        text=program.as_text(),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        seconds=time.perf_counter() - start,
    )
    if file:
        _write(file, dataclasses.asdict(made))
    return made


def _write(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(json.dumps(values).encode()))


def _libtpu_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""


def _devices(lowered: Any) -> str:
    """The kind of the devices, and how many."""
    devices = lowered._lowering.compile_args.get("device_list") or ()
    return ",".join(f"{d.device_kind}{d.coords}" for d in devices)
