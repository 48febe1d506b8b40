"""A workdir on ``gs://``: config, tokenizer, checkpoints, scalars and results."""

import os
import subprocess
import sys
from pathlib import Path, PosixPath

import pytest

from mtp_jax.paths import absolute, to_path


def test_a_workdir_may_lie_in_a_bucket():
    """In a process of its own, which is told where the bucket is before it imports anything."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.in_a_bucket"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.splitlines()[-1] == "all is in the bucket"


@pytest.mark.parametrize("path", ["runs/one", "/runs/one", Path("runs/one")])
def test_a_local_path_is_one_of_pathlib(path):
    assert type(to_path(path)) is PosixPath
    assert to_path(path) == Path(path)
    assert to_path("~/runs") == Path.home() / "runs"
    assert absolute(to_path("runs")) == Path.cwd() / "runs"


def test_a_bucket_path_stays_as_it_is():
    path = to_path("gs://speech/runs") / "one"
    assert str(path) == str(absolute(path)) == "gs://speech/runs/one"
    assert to_path(path) == path
