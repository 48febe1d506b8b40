"""Damaged checkpoints get one short sentence, and those of earlier versions are read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mtp_jax.checkpoints import checkpoint as checkpoint_module
from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.digest import DamageError, check, digests
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.inference.load import load
from tests.models import tiny_workdir

# Where one array of a checkpoint cannot be read, Orbax gives up, and reads of others that are under
# way find its event loop closed. That harms nothing, but Python reports it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def reads_under_way_end_with_their_test():
    yield
    time.sleep(0.3)


def data_files(workdir: Path) -> list[Path]:
    """Files that hold numbers, the largest first."""
    files = [f for f in (workdir / "best").rglob("*") if f.is_file() and f.parent.name == "d"]
    return sorted(files, key=lambda f: -f.stat().st_size)


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def halved(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flipped(file: Path) -> None:
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    content[np.linspace(0, len(content) - 1, 64).astype(int)] ^= 0x10
    file.write_bytes(content.tobytes())


@pytest.mark.parametrize("damage", [zeroed, halved, flipped, Path.unlink])
def test_damage_is_one_short_sentence(workdir, tmp_path, damage):
    shutil.copytree(workdir, tmp_path / "run")
    damage(data_files(tmp_path / "run")[0])
    with pytest.raises(CheckpointError, match="or is damaged") as refusal:
        load(Workdir(tmp_path / "run"))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


def test_missing_metadata_are_one_short_sentence_and_no_warning(workdir, tmp_path, capfd):
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run/best").rglob("_METADATA"):
        file.unlink()
    with pytest.raises(CheckpointError, match="its metadata is missing or damaged"):
        load(Workdir(tmp_path / "run"))
    assert capfd.readouterr().err == ""


def test_numbers_other_than_those_saved_are_damage():
    tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.int32(3)}
    saved = digests(tree)
    check(tree, saved)
    check(tree, {})  # of an earlier version
    other = {"a": tree["a"].copy(), "b": tree["b"]}
    other["a"].view(np.uint32)[1, 2] ^= 1
    with pytest.raises(DamageError, match=r"\['a'\] holds other numbers than were saved"):
        check(other, saved)


def test_a_checkpoint_knows_its_digests(workdir, monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoint_module, "check", lambda tree, saved: seen.append(saved))
    params = load(Workdir(workdir)).params
    assert seen == [digests(params)]


def test_a_checkpoint_of_an_earlier_version_is_read(workdir, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "digests", lambda tree: {})
        tiny_workdir(tmp_path / "run")
    earlier, now = (load(Workdir(path)).params for path in (tmp_path / "run", workdir))
    assert digests(earlier) == digests(now)
