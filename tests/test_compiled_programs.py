"""Compiled programs that were cut are removed, so that JAX writes them again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mtp_jax.distributed.compiled_programs import remove_damaged

WHOLE = zlib.compress(random.Random(0).randbytes(5_000))


@pytest.mark.parametrize(
    "damaged",
    [b"", bytes(100), WHOLE[:-1], WHOLE[:50], WHOLE[:2_000] + bytes(len(WHOLE) - 2_000)],
    ids=["empty", "zeros", "without its last byte", "cut", "half zeroed"],
)
def test_what_is_not_whole_is_removed(damaged: bytes, tmp_path: Path) -> None:
    for name, content in {"a-cache": WHOLE, "b-cache": damaged, "notes": b""}.items():
        (tmp_path / name).write_bytes(content)
    assert remove_damaged(tmp_path) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"a-cache", "notes", "checked"}


def test_what_was_there_at_the_last_look_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a-cache"
    file.write_bytes(WHOLE)
    os.utime(file, ns=(0, 0))
    assert remove_damaged(tmp_path) == 0
    file.write_bytes(b"")
    os.utime(file, ns=(0, 0))
    assert remove_damaged(tmp_path) == 0
    os.utime(file)
    assert remove_damaged(tmp_path) == 1


def test_jax_reads_what_stays_and_writes_what_was_removed(tmp_path: Path) -> None:
    program = """
import sys, warnings, pathlib
warnings.simplefilter("error")
import jax
from mtp_jax.distributed import startup
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
startup.start(sys.argv[1])
jax.jit(lambda x: x * 3 + 1)(2.0)
"""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}

    def run() -> dict[str, int]:
        command = [sys.executable, "-c", program, str(tmp_path)]
        subprocess.run(command, check=True, env=env, cwd=Path(__file__).parent.parent)
        return {f.name: f.stat().st_size for f in (tmp_path / "compiled").glob("*-cache")}

    first = run()
    assert first
    for name, size in first.items():
        os.truncate(tmp_path / "compiled" / name, size // 2)
    assert run().keys() == first.keys()
    assert all(
        (tmp_path / "compiled" / name).stat().st_size > size // 2 for name, size in first.items()
    )
