"""What the TPU compiler makes of a program; kept on disk, as it takes a while to make.

The compiler is stopped once the program is optimised, scheduled and laid out in memory: what is
left, machine code for each fusion, takes ten times as long and changes none of it. It runs in a
process of its own, `mtp_jax.planning.worker`, which can be stopped so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mtp_jax import interrupts
from mtp_jax.config import Config, from_config_dict
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.tokenizer.merges import Merges
from mtp_jax.tokenizer.speech_prompts import SpeechPrompt
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

# These only read what the compiler made.
_READERS = (
    "chips",
    "collectives",
    "compiled",
    "costs",
    "drafts",
    "hlo",
    "memory",
    "meshes",
    "model_flops",
    "plan",
    "roofline",
)


class CompileError(RuntimeError):
    """The compiler failed for no fault of the program's size; the message is its own."""


class DoesNotFit(Exception):
    """The compiler found no way to run a program within the memory of a chip."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A program to compile.

    Attributes:
        config: of the run, its mesh included.
        vocabulary: the tokenizer's, its prompt and merges included: they decide shapes too.
        topology: as in ``v5e:4x4``.
        program: "train", a strategy, or "call" for one decoder call.
        rows, seconds, tokens: of the batch (see `programs.Load`).
        width, prompt: of a call (see `programs.lower_call`).
        weights: of what decodes, as of `programs.parameters`.
        codegen: whether machine code is generated too.
    """

    config: Config
    vocabulary: Vocabulary
    topology: str
    program: str
    rows: int
    seconds: float
    tokens: int
    width: int = 1
    prompt: int = 0
    weights: str = ""
    codegen: bool = False

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), default=np.ndarray.tolist)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        config, vocabulary = from_config_dict(values["config"]), values["vocabulary"]
        return cls(**values | {"config": config, "vocabulary": _vocabulary(vocabulary)})


def _vocabulary(values: dict[str, Any]) -> Vocabulary:
    """The inverse of `dataclasses.asdict`, after JSON."""
    prompt = {name: tuple(values[name]) for name in ("prompt_before", "prompt_after", "ends")}
    merges = values["merges"]
    if merges is not None:
        space = merges.pop("space")
        arrays = {name: np.array(numbers, np.int32) for name, numbers in merges.items()}
        merges = Merges(**arrays, space=space)
    whisper = values["whisper"]
    if whisper is not None:
        languages = {"languages": tuple((code, token) for code, token in whisper["languages"])}
        tokens = {name: tuple(whisper[name]) for name in ("suppressed", "suppressed_first")}
        whisper = WhisperTokens(**whisper | languages | tokens)
    speech = values["speech"]
    if speech is not None:
        parts = ("begin", "before_audio", "behind_audio", "end")
        told = {"languages": tuple((code, tuple(ids)) for code, ids in speech["languages"])}
        speech = SpeechPrompt(**speech | {name: tuple(speech[name]) for name in parts} | told)
    return Vocabulary(**values | prompt | {"merges": merges, "whisper": whisper, "speech": speech})


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of a program.

    Attributes:
        text: optimised and scheduled HLO.
        arguments: bytes a chip, parameters and optimizer included.
        coordinates: of each chip on the torus, in the order of the program's ids.
        peak: bytes a chip at the worst moment, as the compiler allocated them; None unless machine
            code was generated.
        seconds: that it took.
    """

    text: str
    arguments: int
    coordinates: tuple[tuple[int, ...], ...]
    peak: int | None
    seconds: float


def compiled(task: Task, folder: Path) -> Compiled:
    """Compiles a program, unless `folder` holds what came of it before.

    Raises:
        DoesNotFit: a chip has too little memory.
        CompileError: the compiler failed otherwise.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    file = folder / f"{_key(task, given)}.json.gz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run_worker(task, file, given)
    kept = json.loads(gzip.decompress(file.read_bytes()))
    if "too_large" in kept:
        raise DoesNotFit(kept["too_large"])
    places = tuple(tuple(place) for place in kept.pop("coordinates"))
    return Compiled(coordinates=places, **kept)


def _run_worker(task: Task, file: Path, given: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        spec, dump, error = (Path(scratch) / name for name in ("task.json", "dump", "error"))
        spec.write_text(task.to_json())
        settings = f"--xla_jf_dump_to={dump} --xla_jf_dump_hlo_text=true"
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": given if task.codegen else f"{given} {settings}".strip(),
            # Without these libtpu asks the cloud's metadata server, and lets one process in.
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, "-m", "mtp_jax.planning.worker"]
        command += [str(path) for path in (spec, file, dump, error)]
        status, said = _run(command, env)
        if error.exists():
            raise CompileError(error.read_text())
        if not file.exists():
            lines = said.strip().splitlines() or [f"exit status {status}"]
            raise CompileError(f"the TPU compiler failed on {task.program}: {lines[-1][:400]}")


def _run(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit status of a process, and what it said on stderr.

    Raises:
        Interrupted: this process was told to end; that one is ended.
    """
    with interrupts.shielded():
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    with process:
        try:
            while True:
                interrupts.raise_if_requested()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, said = process.communicate(timeout=0.2)
                    return process.returncode, said
        except BaseException:
            process.kill()
            raise


def _key(task: Task, flags: str) -> str:
    """Of all that decides what the compiler makes of a task: itself, our sources, versions."""
    key = hashlib.sha256(f"{task.to_json()} {flags} {_versions()}".encode())
    package = Path(__file__).parent.parent
    here = Path(__file__).parent
    readers = {here / f"{name}.py" for name in _READERS}
    for source in sorted(set(package.rglob("*.py")) - readers - {package / "compile.py"}):
        key.update(source.read_bytes())
    return key.hexdigest()[:32]


def _versions() -> str:
    found = []
    for name in ("jax", "flax", "optax", "qwix", "libtpu"):
        try:
            found.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            found.append("none")
    return " ".join(found)
