"""TensorBoard scalars of a run, read back."""

from __future__ import annotations

import logging
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from mtp_jax.checkpoints.workdir import Workdir

log = logging.getLogger("mtp_jax")
_CRC = 4  # bytes of a checksum


def read_scalars(workdir: Workdir) -> dict[str, dict[int, float]]:
    """Values by name and step; of steps made twice (after a kill) the last.

    A file ends where a kill or a power failure has cut it, at the last record that is whole.
    """
    found: dict[str, dict[int, float]] = {}
    for file in _files(workdir):
        for event in _events(file)[0]:
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def warn_of_lost_scalars(workdir: Workdir, step: int) -> None:
    """Logs which files of scalars lack some of a step that a checkpoint has.

    Args:
        workdir: of the run.
        step: that training goes on from.
    """
    files = _files(workdir)
    read = [_events(file) for file in files]
    for i, (file, (events, whole)) in enumerate(zip(files, read, strict=True)):
        if whole:
            continue
        later = [events[1].step for events, _ in read[i + 1 :] if _begins(events)]
        last = max((event.step for event in events if event.summary.value), default=0)
        if last + 1 < min([*later, step + 1]):
            log.warning(
                "%s is damaged: its scalars behind step %d are lost. Training goes on; remove it"
                " to be rid of this warning",
                *(file, last),
            )


def _files(workdir: Workdir) -> list[Path]:
    return sorted(workdir.tensorboard.glob("events*"))


def _begins(events: list[Event]) -> bool:
    """Whether the second record is there, which says what step is the first."""
    return len(events) > 1 and events[1].session_log.status == SessionLog.START


def _events(file: Path) -> tuple[list[Event], bool]:
    """Those that are whole, and whether all are: length, checksum, event, checksum each."""
    content, at, events = file.read_bytes(), 0, list[Event]()
    while at < len(content):
        head = content[at : at + 8]
        body = at + 8 + _CRC
        end = body + int.from_bytes(head, "little")
        if end + _CRC > len(content) or not _holds(head, content[body - _CRC : body]):
            return events, False
        if not _holds(content[body:end], content[end : end + _CRC]):
            return events, False
        events.append(Event.FromString(content[body:end]))
        at = end + _CRC
    return events, bool(events)


def _holds(content: bytes, checksum: bytes) -> bool:
    return bool(masked_crc32c(content) == int.from_bytes(checksum, "little"))
