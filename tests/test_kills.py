"""Training ends with the same bits, whatever happens to it: the short form of `bench.kills`."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kills, training_start
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError

HOLDS = """
import sys, time
from mtp_jax.checkpoints.workdir import Workdir
with Workdir(sys.argv[1]).alone():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=training_start.ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(WorkdirError, match="another run trains"), Workdir(tmp_path).alone():
            pass
        process.send_signal(signal.SIGKILL)
    with Workdir(tmp_path).alone():
        pass


def test_what_a_sentence_says_is_done(tmp_path: Path) -> None:
    def folders() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    for name in ("8", "12"):
        (tmp_path / name).mkdir()
    assert kills._follow(f"error: {tmp_path}/8 is damaged: remove {tmp_path}/8, and it goes on")
    assert folders() == {"12"}
    (tmp_path / "8").mkdir()
    assert kills._follow(
        f"error: it: put it back, or remove {tmp_path}/8 and {tmp_path}/12, and so"
    )
    assert folders() == set()
    assert kills._follow(f"error: {tmp_path}/dev.json cannot be read: write [] into it, and so on")
    assert (tmp_path / "dev.json").read_text() == "[]"
    assert not kills._follow("error: it is damaged")


@pytest.mark.slow
def test_a_run_ends_with_the_same_bits_whatever_happens(tmp_path: Path) -> None:
    """A kill in each phase, a full disk, damaged files, two starts, two processes."""
    kills.run(6, kills.TROUBLE, random.Random(0), str(tmp_path))
