"""Which module may import which, as DESIGN.md has it; held over the syntax trees of the sources."""

from __future__ import annotations

import ast
import pathlib

import pytest

import mtp_jax

ROOT = pathlib.Path(mtp_jax.__file__).parent
FILES = {
    ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
}

# What a module or package may import of ours; those not named may import anything but COMMANDS.
ALLOWED: dict[str, set[str]] = {
    "config": {"config"},
    "paths": set(),
    "tokenizer": {"paths", "tokenizer"},
    "products": set(),
    "losses": {"products"},
    "metrics": set(),
    "sharding": {"config"},
    "audio": {"config", "sharding"},
    "features": {"config", "sharding"},
    "processes": {"data", "sharding"},
    "optim": {"config", "params"},
    "params": {"config"},
    "workdir": {"config", "paths"},
    "nn": {"config", "products", "sharding", "nn"},
    "decoding": {"nn.cache", "decoding"},
    "importers": {"config", "nn", "importers", "params", "sharding"},
    "data": {"config", "paths", "tokenizer", "audio", "data"},
    "merges": {"nn", "tokenizer"},
    "drafters": {"decoding", "nn"},
    "transcription.alignment": set(),
    "transcription.ahead": set(),
    "transcription.confidence": set(),
    "transcription.loops": set(),
    "transcription.voice": set(),
    "transcription.results": set(),
    "transcription.cutting": {"transcription.voice"},
    "transcription.joining": {"transcription.results"},
    "transcription.formats": {"transcription.results"},
    "transcription.spelling": {"tokenizer"},
    "known": {"config"},
    "tpu.hlo": set(),
    "tpu.chips": set(),
    "tpu.costs": {"tpu.hlo"},
    "tpu.memory": {"tpu.costs", "tpu.hlo"},
    "tpu.collectives": {"tpu.hlo", "tpu.chips"},
    "tpu.roofline": {"tpu"},
    "tpu.compiled": {"config"},
    "serving.refusal": set(),
    "serving.upload": {"serving.refusal"},
    "serving.options": {"config", "serving.refusal"},
    "serving.metrics": {"transcription.results"},
    "serving.job": {"decoding", "transcription"},
    "serving.answers": {"serving.options", "transcription"},
}
COMMANDS = {
    *("mtp_jax.train", "mtp_jax.evaluate", "mtp_jax.export", "mtp_jax.compile"),
    *("mtp_jax.transcribe", "mtp_jax.calibrate", "mtp_jax.pack", "mtp_jax.planning.worker"),
    *("mtp_jax.serve", "mtp_jax.__main__"),
}
DEVICE = {"jax", "jaxlib", "flax", "optax", "orbax"}


def imports(module: str) -> set[str]:
    """Full names of the modules that `module` imports, wherever in its file it does."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_is_below_it(layer: str) -> None:
    members = [module for module in FILES if within(module, {f"mtp_jax.{layer}"})]
    assert members, f"no module mtp_jax.{layer}: mend the table"
    allowed = {f"mtp_jax.{name}" for name in ALLOWED[layer]}
    for module in members:
        ours = {name for name in imports(module) if within(name, {"mtp_jax"})}
        wrong = {name for name in ours if not within(name, allowed)}
        assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_data_makes_no_device_call() -> None:
    for module in FILES:
        if within(
            module, {"mtp_jax.data", "mtp_jax.audio.reading", "mtp_jax.tokenizer", "mtp_jax.config"}
        ):
            assert not {name for name in imports(module) if within(name, DEVICE)}, module


def test_nobody_imports_a_command_line() -> None:
    assert set(FILES) >= COMMANDS
    for module in FILES:
        assert not imports(module) & COMMANDS, module


def test_only_the_service_needs_what_serves() -> None:
    """Its packages are an extra."""
    extra = {"starlette", "uvicorn", "python_multipart", "prometheus_client", "mtp_jax.serving"}
    users = {module for module in FILES if any(within(name, extra) for name in imports(module))}
    assert users
    assert all(within(user, {"mtp_jax.serving", "mtp_jax.serve"}) for user in users)


def test_only_the_maker_of_the_corpus_touches_espeak() -> None:
    """It is under GPL-3."""
    users = {module for module in FILES if "mtp_jax.data.espeak" in imports(module)}
    assert users <= {"mtp_jax.data.corpus"}
    users = {module for module in FILES if "espeakng_loader" in imports(module)}
    assert users <= {"mtp_jax.data.espeak"}
