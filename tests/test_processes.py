"""Several processes make the run that one makes, whatever ends them and however many go on."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pprint
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import (
    Augment,
    Config,
    Data,
    Decoder,
    Encoder,
    Heads,
    Optim,
    Tokenizer,
    Train,
)
from mtp_jax.data import Share
from mtp_jax.distributed import multihost
from mtp_jax.distributed.multihost import LOST
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.evaluation.scalars import read_scalars

ROOT = Path(__file__).parent.parent
STEPS, SAVED_EVERY, UTTERANCES = 9, 3, 64  # an epoch is 8 batches of 8
LOST_AFTER = 10  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the config file, the caches and the workdirs."""
    folder = tmp_path_factory.mktemp("processes")
    config = Config(
        data=Data(
            train="embedded/tiny:train",
            dev="embedded/tiny:dev",
            test="embedded/tiny:test",
            cache_dir=str(folder / "cache"),
            bucket_seconds=(3.2,),
            batch_size=8,
            max_tokens=48,
        ),
        augment=Augment(speeds=(0.95, 1.0)),
        tokenizer=Tokenizer(vocab_size=64),
        encoder=Encoder(width=16, layers=1, heads=2, kernel=3, feedforward=1, dropout=0.1),
        decoder=Decoder(width=16, layers=1, query_heads=2, head_size=8, feedforward=16),
        heads=Heads(count=2),
        optim=Optim(steps=STEPS, warmup_steps=1),
        train=Train(log_every=1, dev_every=STEPS, checkpoint_every=SAVED_EVERY),
    )
    values = pprint.pformat(dataclasses.asdict(config))
    (folder / "tiny.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({values})\n"
    )
    return folder


class Job:
    """One start of a run as `count` processes.

    Args:
        folder, name: where, and the name of its workdir.
        count: processes.
        death: step and signal, at which the last process, or `victim`, is hit.
    """

    def __init__(
        self, folder: Path, name: str, count: int, *death: object, victim: int = -1
    ) -> None:
        self.workdir = Workdir(folder / name)
        self.reads = folder / f"{name}.reads{time.monotonic_ns()}"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes, self.logs = [], []
        for process in range(count):
            hit = [str(x) for x in death] if process == victim % count else []
            group = {
                "MTP_COORDINATOR": f"localhost:{port}",
                "MTP_PROCESSES": str(count),
                "MTP_PROCESS_ID": str(process),
                "MTP_LOST_AFTER": str(LOST_AFTER),
            }
            command = [sys.executable, "-m", "tests.one_of_several", str(self.reads), *hit, "--"]
            command += [f"--config={folder / 'tiny.py'}", f"--workdir={self.workdir.path}"]
            env = os.environ | {"JAX_PLATFORMS": "cpu"} | (group if count > 1 else {})
            self.logs.append(Path(f"{self.reads}.{process}.log"))
            with self.logs[-1].open("w") as log:
                started = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
            self.processes.append(started)

    def end(self, seconds: float = 1200) -> tuple[list[int], list[str]]:
        """Exit statuses, and what each process said; `ends` is when each ended."""
        until = time.monotonic() + seconds
        self.ends: dict[int, float] = {}
        try:
            while len(self.ends) < len(self.processes) and time.monotonic() < until:
                for i, process in enumerate(self.processes):
                    if i not in self.ends and process.poll() is not None:
                        self.ends[i] = time.monotonic()
                time.sleep(0.1)
        finally:
            for process in self.processes:
                process.kill()
        said = [path.read_text() for path in self.logs]
        return [process.wait() for process in self.processes], said

    def taken(self) -> dict[int, list[int]]:
        """By step, the utterances in the batch, in the order of the processes."""
        found = collections.defaultdict(list)
        for process in range(len(self.processes)):
            for line in Path(f"{self.reads}.{process}.jsonl").read_text().splitlines():
                step, index = json.loads(line)
                found[step] += index
        return found


def finish(folder: Path, name: str, count: int) -> Job:
    job = Job(folder, name, count)
    codes, said = job.end()
    assert codes == [0] * count, said
    return job


def assert_ended(code: int, said: str) -> None:
    """By the failure of what it computed with the other, or, if that is sooner, by the silence."""
    if code == LOST:
        assert "error: another process of the run ended or cannot be reached" in said
        assert "start all of them again to go on from the last checkpoint" in said
    else:
        assert code == -signal.SIGABRT, said
        assert "heartbeat" in said.lower() or "coordination service" in said.lower(), said


@pytest.fixture(scope="module")
def one(folder) -> Job:
    """The run that nothing disturbed, in one process."""
    return finish(folder, "one", 1)


def assert_same_run(workdir: Workdir, other: Workdir) -> None:
    """Every scalar of every step; sums over 8 rows are taken in other orders."""
    ours, theirs = read_scalars(workdir), read_scalars(other)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        if not name.endswith("_per_second"):
            assert ours[name].keys() == values.keys(), name
            assert list(values) == (list(range(1, STEPS + 1)) if "train" in name else [STEPS])
            np.testing.assert_allclose(
                list(ours[name].values()), list(values.values()), 2e-5, err_msg=name
            )


def test_a_killed_process_ends_the_other_and_one_alone_goes_on(folder, one):
    """SIGKILL at step 5; the checkpoint of step 3 is what remains."""
    job = Job(folder, "two", 2, 5, "SIGKILL")
    codes, said = job.end()
    assert codes[1] == -signal.SIGKILL, said
    assert_ended(codes[0], said[0])
    assert job.ends[0] - job.ends[1] < LOST_AFTER + 50

    rest = finish(folder, "two", 1)
    before, after, whole = job.taken(), rest.taken(), one.taken()
    assert min(after) in (0, SAVED_EVERY)  # what was being saved may be lost, too
    assert {step: before[step] for step in range(min(after))} | after == whole
    epoch = [i for step in range(8) for i in whole[step]]
    assert sorted(epoch) == list(range(UTTERANCES))
    assert_same_run(rest.workdir, one.workdir)


@pytest.mark.slow
def test_four_then_two_then_four_processes_make_the_same_run(folder, one):
    """SIGTERM to one of four at step 2, SIGSTOP of one of two at step 5."""
    four = Job(folder, "many", 4, 2, "SIGTERM", victim=2)
    codes, said = four.end()
    assert codes == [128 + signal.SIGTERM] * 4, said
    stopped = max(int(path.name) for path in (four.workdir.path / "checkpoints").iterdir())
    assert f"SIGTERM: step {stopped} is saved" in said[0]
    assert 2 <= stopped < 6

    two = Job(folder, "many", 2, stopped + 2, "SIGSTOP")
    code = two.processes[0].wait(1200)  # by the silence of the other
    two.processes[1].kill()
    assert_ended(code, two.end()[1][0])

    rest = finish(folder, "many", 4)
    taken, whole = rest.taken(), one.taken()
    for job, until in ((two, min(taken)), (four, stopped)):
        taken |= {step: index for step, index in job.taken().items() if step < until}
    assert taken == whole
    assert_same_run(rest.workdir, one.workdir)


@pytest.mark.slow
def test_the_others_end_with_the_coordinator(folder, one):
    job = Job(folder, "headless", 2, 4, "SIGKILL", victim=0)
    codes, said = job.end()
    assert codes[0] == -signal.SIGKILL, said
    assert_ended(codes[1], said[1])
    assert job.ends[1] - job.ends[0] < LOST_AFTER + 50


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (("", 2, 0), "--processes and --process_id need --coordinator=HOST:PORT"),
        (("auto", 2, -1), "--processes and --process_id need --coordinator=HOST:PORT"),
        (("here", 2, 0), "--coordinator=here is not HOST:PORT, nor auto"),
        (("here:80", 2, 2), "--process_id=2 must be 0 or more and less than --processes=2"),
        (("here:80",), "--process_id=-1 must be 0 or more and less than --processes=-1"),
        (("here:80", 2, 0, 1), "--lost_after=1 must be 2 seconds or more"),
    ],
)
def test_a_group_that_cannot_be_is_refused(group, sentence):
    with pytest.raises(multihost.ProcessError) as error:
        multihost.Group(*group)
    assert sentence in str(error.value)


def test_one_process_holds_all_and_waits_for_nobody():
    mesh = make_mesh(Config().mesh, jax.devices()[:1])
    assert multihost.share_of(mesh) == Share()
    multihost.join(multihost.Group())
    multihost.barrier("nothing")
    multihost.assert_same("data", object())
    with multihost.process_zero_first("anything"):
        assert multihost.is_process_zero()
