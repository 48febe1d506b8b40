"""Scalars of a run, which a kill cuts anywhere."""

from __future__ import annotations

from pathlib import Path

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.evaluation.scalars import read_scalars
from mtp_jax.training.board import Board


def test_what_is_flushed_is_on_the_disk_before_the_board_is_closed(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with Board(workdir.tensorboard, 0) as board:
        board.add_scalar("loss", 2.5, 1)
        board.flush()
        assert read_scalars(workdir) == {"loss": {1: 2.5}}
    with Board(None, 0) as board:
        board.flush()


def test_a_file_that_is_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with Board(workdir.tensorboard, 0) as board:
        for step in range(3):
            board.add_scalar("loss", step / 4, step)
    whole = {step: step / 4 for step in range(3)}
    assert read_scalars(workdir) == {"loss": whole}
    (file,) = workdir.tensorboard.iterdir()
    content, held = file.read_bytes(), []
    for size in range(len(content)):
        file.write_bytes(content[:size])
        found = read_scalars(workdir).get("loss", {})
        assert found.items() <= whole.items()
        assert list(found) == list(range(len(found)))
        held.append(len(found))
    assert held == sorted(held)
    assert {*held} == {0, 1, 2}
