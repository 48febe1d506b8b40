"""What is finished stays where a disk is full; the limit of a file's size stands for the disk's."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from mtp_jax import cli
from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Mesh
from mtp_jax.distributed.sharding import make_mesh, replicated
from mtp_jax.evaluation.scalars import read_scalars
from mtp_jax.paths import write_whole
from mtp_jax.training import board as board_module
from mtp_jax.training.board import Board
from mtp_jax.training.step import TrainState
from tests import commands


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may become larger than `size` bytes."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def state(step: int) -> TrainState:
    numbers = np.random.default_rng(step).normal(size=200_000).astype(np.float32)
    return TrainState(jax.device_put(np.int32(step)), {"w": jax.device_put(numbers)}, {}, {}, {})


def save(folder: Path, trained: TrainState, wer: float | None = None) -> None:
    with Checkpoints(folder, alone=True) as checkpoints:
        if wer is None:
            checkpoints.save(trained)
        else:
            checkpoints.save_best(trained, wer)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, capfd):
    logging.getLogger("absl").addFilter(cli._is_news)
    with Checkpoints(tmp_path, alone=True) as checkpoints:
        checkpoints.save(state(1))
        checkpoints.save_best(state(1), 50.0)
        checkpoints.wait()
    with largest_file(100_000):
        with pytest.raises(OSError, match="File too large") as refusal:
            save(tmp_path, state(2))
        assert refusal.value.filename == str(tmp_path / "checkpoints")
        with pytest.raises(OSError, match="File too large") as refusal:
            save(tmp_path, state(2), 40.0)
        assert refusal.value.filename == str(tmp_path / "best")
    assert capfd.readouterr().err == ""
    everywhere = replicated(make_mesh(Mesh(), jax.devices()[:1]))
    shardings = TrainState(everywhere, {"w": everywhere}, {}, {}, {})
    with Checkpoints(tmp_path, alone=True) as checkpoints:
        assert checkpoints.best() == (1, 50.0)
        restored = checkpoints.restore(state(0), shardings)
        np.testing.assert_array_equal(restored.params["w"], state(1).params["w"])
        checkpoints.save(state(2))
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]


def fill(folder: Path) -> None:
    with Board(folder, 7) as board:
        for step in range(100_000):
            board.add_scalar("train/loss", 2.5, step)


def test_scalars_that_cannot_be_written_are_an_error_at_once_and_no_thread_waits(
    tmp_path, monkeypatch
):
    workdir = Workdir(tmp_path)
    with Board(workdir.tensorboard, 0) as board:
        board.add_scalar("train/loss", 2.5, 7)
    monkeypatch.setattr(board_module, "RecordWriter", lambda path: RecordWriter("/dev/full"))
    with pytest.raises(OSError, match="No space left") as refusal:
        fill(tmp_path)
    assert Path(refusal.value.filename).name.startswith("events.out.tfevents")
    with pytest.raises(OSError, match="No space left"), Board(tmp_path, 7):
        pass  # told when it is closed, too
    with pytest.raises(KeyError), Board(tmp_path, 7):
        raise KeyError  # which is what ended training
    assert read_scalars(workdir) == {"train/loss": {7: 2.5}}


def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(tmp_path):
    file = tmp_path / "results.json"
    write_whole(file, b"before")
    with largest_file(10), pytest.raises(OSError, match="File too large") as refusal:
        write_whole(file, bytes(100))
    assert refusal.value.filename == str(file)
    assert [f.read_bytes() for f in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "error: out cannot be written (No space left on device): make room\n"),
        (errno.EACCES, "error: [Errno 13] Permission denied: 'out'\n"),
    ],
)
def test_a_command_says_so_in_one_sentence(number, sentence, monkeypatch, capsys):
    def main(argv: list[str]) -> None:
        raise OSError(number, os.strerror(number), "out")

    monkeypatch.setattr("sys.argv", ["command"])
    assert cli._guard(main, [], lambda: False) == 1
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.data.train=nowhere", "source 'nowhere' is no file or directory"),
        ("--config.data.dev=nowhere", "source 'nowhere' is no file or directory"),
        ("--config.data.test=tfds:nothing", "tfds:nothing"),
        ("--workdir=/dev/null/run", "/dev/null/run cannot be written (Not a directory)"),
    ],
)
def test_training_looks_at_folder_and_data_before_it_claims_the_folder(flag, sentence, tmp_path):
    workdir = tmp_path / "run"
    done = commands.run("train", "--config=mtp", f"--workdir={workdir}", flag)
    assert done.status in (1, 2)
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert not workdir.exists()
