"""Scalars of a run, which a kill cuts anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.evaluation.scalars import read_scalars, warn_of_lost_scalars
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


@pytest.mark.parametrize("damage", ["cut", "zeroed", "emptied", "flipped"])
def test_lost_scalars_are_told(tmp_path: Path, caplog, damage: str) -> None:
    workdir = Workdir(tmp_path)
    for start in (0, 2):
        with Board(workdir.tensorboard, start) as board:
            for step in (start + 1, start + 2):
                board.add_scalar("loss", step / 4, step)
    warn_of_lost_scalars(workdir, 4)
    assert not caplog.text
    file = min(workdir.tensorboard.iterdir())
    content = file.read_bytes()
    flipped = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
    damaged = {"cut": content[:-5], "zeroed": bytes(len(content)), "emptied": b""}
    file.write_bytes(damaged.get(damage, flipped))
    warn_of_lost_scalars(workdir, 4)
    left = 0 if damage in ("zeroed", "emptied") else 1
    assert f"{file} is damaged: its scalars behind step {left} are lost" in caplog.text
    kept = {step: step / 4 for step in range(1, 5) if not left < step < 3}
    assert read_scalars(workdir) == {"loss": kept}


def test_a_record_that_a_kill_has_cut_behind_the_checkpoint_is_not_told(
    tmp_path: Path, caplog
) -> None:
    workdir = Workdir(tmp_path)
    with Board(workdir.tensorboard, 0) as board:
        for step in (1, 2, 3):
            board.add_scalar("loss", step / 4, step)
    (file,) = workdir.tensorboard.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    warn_of_lost_scalars(workdir, 2)
    assert not caplog.text
