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

# What the modules of a package may import of other packages. Every module is in one of these: a new
# package needs a row here. `audio.ctc_hypothesis` and `config` bring no JAX (test below).
LAYERS: dict[str, set[str]] = {
    "interrupts": set(),
    "paths": set(),
    "untrusted": {"paths"},
    "config": {"decoding.registry"},
    "audio": {"config"},
    "tokenizer": {"paths", "untrusted"},
    "data": {"config", "interrupts", "paths", "audio", "tokenizer"},
    "distributed": {"config", "data"},
    "models": {"config", "audio", "tokenizer", "data", "distributed"},
    "decoding": {"models.kv_cache"},
    "checkpoints": {"config", "paths", "untrusted", "models.params"},
    "pretrained": {
        *("config", "paths", "untrusted", "tokenizer", "distributed", "models", "checkpoints"),
    },
    "inference": {
        *("config", "interrupts", "paths", "untrusted", "audio", "tokenizer", "data"),
        *("distributed", "models", "decoding", "checkpoints", "pretrained"),
    },
}
_ABOVE = {*LAYERS, "inference"}
LAYERS |= {
    "transcription": _ABOVE,
    "evaluation": {*_ABOVE, "transcription"},
    "training": {*_ABOVE, "evaluation"},
    "planning": {*_ABOVE, "training"},
    "serving": {*_ABOVE, "transcription"},
}
COMMANDS = {
    f"mtp_jax.{name}"
    for name in (
        *("train", "evaluate", "transcribe", "serve", "calibrate", "export", "pack", "compile"),
        *("__main__", "planning.worker"),
    )
}
# Modules that stand above the packages: they tie commands to them.
ENDS = {
    *("mtp_jax", "mtp_jax.cli", "mtp_jax.errors", "mtp_jax.flag_checks", "mtp_jax.terminal"),
    *COMMANDS,
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


def test_every_module_is_in_a_layer() -> None:
    packages = {module.split(".")[1] for module in FILES if module not in ENDS}
    assert packages == LAYERS.keys()
    assert set(FILES) >= ENDS


@pytest.mark.parametrize("module", [module for module in FILES if module not in ENDS])
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    package = module.split(".")[1]
    allowed = {f"mtp_jax.{name}" for name in (package, *LAYERS[package])}
    ours = {name for name in imports(module) if within(name, {"mtp_jax"})}
    wrong = {name for name in ours if not within(name, allowed)}
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_the_order_of_layers_has_no_cycle() -> None:
    def below(package: str, seen: tuple[str, ...] = ()) -> set[str]:
        assert package not in seen, f"{' > '.join((*seen, package))} is a cycle"
        direct = {name for name in LAYERS[package] if "." not in name}
        return direct.union(*(below(name, (*seen, package)) for name in direct - {package}))

    for package in LAYERS:
        assert package not in below(package) - {package}


def test_data_makes_no_device_call() -> None:
    packages = {"mtp_jax.data", "mtp_jax.audio.reading", "mtp_jax.tokenizer", "mtp_jax.config"}
    assert set(FILES) >= packages
    for module in FILES:
        if within(module, packages):
            assert not {name for name in imports(module) if within(name, DEVICE)}, module


def test_nobody_imports_a_command_line() -> None:
    assert set(FILES) >= COMMANDS
    for module in FILES:
        assert not imports(module) & COMMANDS, module


def test_no_command_of_bench_is_imported_by_another() -> None:
    """The flags of both would be defined in one process."""
    bench = {file.stem: file.read_text() for file in (ROOT.parent / "bench").glob("*.py")}
    commands = {name for name, source in bench.items() if "flags.DEFINE" in source}
    assert "identity" in commands
    for name, source in bench.items():
        imported = {
            node.module.removeprefix("bench.")
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bench.")
        }
        assert not imported & commands, name


def test_only_the_service_needs_what_serves() -> None:
    """Its packages are an extra."""
    extra = {"starlette", "uvicorn", "python_multipart", "prometheus_client", "mtp_jax.serving"}
    users = {module for module in FILES if any(within(name, extra) for name in imports(module))}
    assert users
    assert all(within(user, {"mtp_jax.serving", "mtp_jax.serve"}) for user in users)


def test_only_the_maker_of_the_corpus_touches_espeak() -> None:
    """It is under GPL-3."""
    users = {module for module in FILES if "mtp_jax.data.espeak" in imports(module)}
    assert users == {"mtp_jax.data.corpus"}
    users = {module for module in FILES if "espeakng_loader" in imports(module)}
    assert users == {"mtp_jax.data.espeak"}
