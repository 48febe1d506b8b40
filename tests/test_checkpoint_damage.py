"""Damaged checkpoints get one short sentence, and those of earlier versions are read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints import checkpoint as checkpoint_module
from mtp_jax.checkpoints.checkpoint import CheckpointError, Checkpoints
from mtp_jax.checkpoints.digest import DamageError, check, digests
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Mesh
from mtp_jax.distributed.sharding import make_mesh, replicated
from mtp_jax.inference.load import load
from mtp_jax.training.step import TrainState
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Two steps of a run; the second is the best."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, alone=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step))
            checkpoints.save_best(state(step), 50.0 - step)
            checkpoints.wait()
    return folder


def state(step: int) -> TrainState:
    numbers = np.random.default_rng(step).normal(size=2_000).astype(np.float32)
    return TrainState(jax.device_put(np.int32(step)), {"w": jax.device_put(numbers)}, {}, {}, {})


def read_all(folder: Path) -> tuple[list[bytes], int]:
    """The numbers of the last state and of the best parameters, and the step of the former."""
    everywhere = replicated(make_mesh(Mesh(), jax.devices()[:1]))
    shardings = TrainState(everywhere, {"w": everywhere}, {}, {}, {})
    with Checkpoints(folder) as checkpoints:
        last = checkpoints.restore(state(0), shardings)
        best = checkpoints.restore_best(state(0).params, shardings.params)
    return [np.asarray(x).tobytes() for x in (last.params["w"], best["w"])], int(last.step)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [zeroed, *(pytest.param(each, marks=pytest.mark.slow) for each in (halved, emptied))]
)
@pytest.mark.parametrize("kind", ["checkpoints/2", "best/2"])
def test_whatever_file_is_damaged_it_is_the_same_or_said_what_to_remove(
    saved, tmp_path, kind, damage, capfd
):
    """As a power failure leaves files that were written last."""
    whole, _ = read_all(saved)
    refused = 0
    for i, file in enumerate(sorted(f for f in (saved / kind).rglob("*") if f.is_file())):
        run = tmp_path / str(i)
        shutil.copytree(saved, run)
        damage(run / file.relative_to(saved))
        try:
            assert read_all(run) == (whole, 2), file
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
            assert f"remove {run / kind}" in str(error), file
            shutil.rmtree(run / kind)
            if kind.startswith("checkpoints"):
                assert read_all(run)[1] == 1
    assert refused >= 5
    assert capfd.readouterr().err == ""


def test_what_a_run_did_not_note_is_saved_again(saved, tmp_path):
    """It was killed behind the save, and what the disk then held may be damaged."""
    shutil.copytree(saved, tmp_path / "run")
    for file in (tmp_path / "run" / "best" / "2" / "params").rglob("*"):
        if file.is_file():
            zeroed(file)
    with Checkpoints(tmp_path / "run", alone=True) as checkpoints:
        assert checkpoints.holds_best(2)
        checkpoints.save_best(state(2), 48.0)
    assert read_all(tmp_path / "run") == read_all(saved)


def test_a_checkpoint_of_an_earlier_version_is_read(workdir, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "digests", lambda tree: {})
        tiny_workdir(tmp_path / "run")
    earlier, now = (load(Workdir(path)).params for path in (tmp_path / "run", workdir))
    assert digests(earlier) == digests(now)
