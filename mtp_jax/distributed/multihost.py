"""What the processes of one run share: a coordinator, barriers that end, and global arrays.

Every process runs the same program over its own devices (single program, multiple data); process 0
alone writes to the workdir and prints. With one process nothing here waits for anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mtp_jax.data import Batch, Share
from mtp_jax.distributed import sharding

Tree = TypeVar("Tree")
WAIT_SECONDS = 3600  # for process 0 to make what all need: a corpus, a tokenizer
LOST = 75  # exit status (EX_TEMPFAIL) where another process ended: starting again may help
_meeting = itertools.count()


class ProcessError(RuntimeError):
    """The processes of a run do not make one run; the message says why, and what to do.

    Args:
        message: one sentence.
        exit_status: of the command; `LOST` where starting again may help.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclasses.dataclass(frozen=True)
class Group:
    """How a process finds the others.

    Attributes:
        coordinator: ``HOST:PORT`` of process 0; "auto" where the platform tells (TPU pods, GKE,
            Slurm, Open MPI); empty for one process.
        processes, process: how many there are, and which this is; -1 where the platform tells.
        lost_after: seconds without a sign of life after which a process is taken for dead, and
            the others end.
    """

    coordinator: str = ""
    processes: int = -1
    process: int = -1
    lost_after: int = 60

    def __post_init__(self) -> None:
        told = self.processes != -1 or self.process != -1
        if self.coordinator in ("", "auto"):
            if told:
                raise ProcessError(
                    "--processes and --process_id need --coordinator=HOST:PORT of process 0"
                )
        elif not self.coordinator.rpartition(":")[2].isdigit():
            raise ProcessError(f"--coordinator={self.coordinator} is not HOST:PORT, nor auto")
        elif not 0 <= self.process < self.processes:
            raise ProcessError(
                f"--process_id={self.process} must be 0 or more and less than"
                f" --processes={self.processes}"
            )
        if self.lost_after < 2:
            raise ProcessError(f"--lost_after={self.lost_after} must be 2 seconds or more")


def join(group: Group) -> None:
    """Joins the other processes of the run; before any other use of JAX.

    Raises:
        ProcessError: they cannot be found within five minutes.
    """
    if not group.coordinator:
        return
    own: dict[str, Any] = {}
    if group.coordinator != "auto":
        own = {
            "coordinator_address": group.coordinator,
            "num_processes": group.processes,
            "process_id": group.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            **own,
            initialization_timeout=300,
            heartbeat_timeout_seconds=group.lost_after,
            shutdown_timeout_seconds=group.lost_after,
        )
    except (ValueError, RuntimeError) as error:
        raise ProcessError(
            f"the processes of --coordinator={group.coordinator} did not find one another"
            f" ({_first_line(error)}): start all of them, each with its own --process_id",
            LOST,
        ) from error


def is_process_zero() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str, seconds: int = WAIT_SECONDS) -> None:
    """Returns once every process is here.

    Raises:
        ProcessError: one is not within `seconds`, or has died.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # imported late: commands without a model do without

    everyone = set(range(jax.process_count()))
    try:
        multihost.sync_global_processes(
            f"mtp_jax {next(_meeting)} {name}", timeout=seconds, processes=everyone
        )
    except Exception as error:
        raise ProcessError(
            f"another process of the run did not come to {name} ({_first_line(error)}):"
            " start all of them again to go on from the last checkpoint",
            LOST,
        ) from error


@contextlib.contextmanager
def process_zero_first(what: str) -> Iterator[None]:
    """Runs its body in process 0, and then in the others, which find what that has made."""
    if not is_process_zero():
        barrier(what)
    yield
    if is_process_zero():
        barrier(what)


def assert_same(what: str, value: Any) -> None:
    """Checks that every process holds the same.

    Args:
        what: it is, for the message.
        value: anything whose ``repr`` says all of it.

    Raises:
        ProcessError: one does not.
    """
    if jax.process_count() == 1:
        return
    ours = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    theirs = multihost_utils.process_allgather(ours)
    other = [i for i, digest in enumerate(theirs) if (digest != theirs[0]).any()]
    if other:
        raise ProcessError(
            f"process {other[0]} has other {what} than process 0: all need the same files"
        )


def share_of(mesh: jax.sharding.Mesh) -> Share:
    """The rows of a global batch that the devices of this process hold.

    Where the tensor axis spans processes, those along it hold, and read, the same rows.
    """
    parts = sharding.batch_divisor(mesh)
    held = sharding.batch_sharding(mesh).addressable_devices_indices_map((parts,))
    return Share(tuple(sorted({_first(index, parts) for index in held.values()})), parts)


def _first(index: tuple[slice, ...] | None, rows: int) -> int:
    """Where the part of an array that `index` names begins along its first axis."""
    return index[0].indices(rows)[0] if index else 0


def place_share(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """The global batch of which every process gives the rows that `share_of` names."""
    split = sharding.batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, split)
    share = share_of(mesh)

    def whole(x: np.ndarray) -> jax.Array:
        each = len(x) // len(share.parts)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            mine = share.parts.index(_first(index, each * share.of) // each) * each
            return x[mine : mine + each]

        return jax.make_array_from_callback((each * share.of, *x.shape[1:]), split, part)

    return jax.tree.map(whole, batch)


def place_whole(tree: Tree, layout: NamedSharding) -> Tree:
    """Arrays that every process has whole, laid out over the devices of all."""
    if jax.process_count() == 1:
        return jax.device_put(tree, layout)
    arrays = jax.tree.map(np.asarray, tree)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, layout, lambda index: x[index]), arrays
    )


def to_host(tree: Tree) -> Tree:
    """NumPy arrays of what lies on the devices of all processes, whole in each."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
