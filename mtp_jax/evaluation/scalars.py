"""TensorBoard scalars of a run, read back."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from tensorboardX.proto import event_pb2

from mtp_jax.checkpoints.workdir import Workdir


def read_scalars(workdir: Workdir) -> dict[str, dict[int, float]]:
    """Values by name and step; of steps made twice (after a kill) the last.

    A file ends where a kill or a power failure has cut it, at the last record that is whole.
    """
    found: dict[str, dict[int, float]] = {}
    for file in sorted(workdir.tensorboard.glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):  # length, its checksum (4 bytes), the event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            if at + 16 + size > len(content):
                break
            try:
                event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
            except DecodeError:
                break
            at += 16 + size
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found
