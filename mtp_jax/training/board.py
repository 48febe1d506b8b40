"""TensorBoard scalars of a run, written by the thread that trains.

tensorboardX's own writer has a thread for it. Once a disk is full that thread dies, and training
waits for it forever; so only its records are taken.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import time
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter, directory_check

_FLUSH_EVERY = 60  # seconds: in a bucket the whole file is sent again


class Board:
    """Use as a context manager.

    Args:
        folder: of the scalars, on a disk or in a bucket; None writes none.
        start: step that training goes on from; later scalars of the folder count no more.

    Raises:
        OSError: on use, what is added cannot be written; it names the file.
    """

    def __init__(self, folder: pathlib.Path | None, start: int) -> None:
        self._records, self._flushed = None, time.monotonic()
        if folder is None:
            return
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path = f"{folder}/{name}"
        with self._named():
            directory_check(str(folder))
            self._records = RecordWriter(self._path)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if self._records is None:
            return
        # What ended training counts, not that this cannot be written either.
        with contextlib.suppress(*([] if kind is None else [OSError])), self._named():
            self._records.close()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds one value."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(step=step, summary=summary))

    def flush(self) -> None:
        """Returns once what was added is on the disk, whatever then ends the process."""
        if self._records is None:
            return
        with self._named():
            self._records.flush()
        self._flushed = time.monotonic()

    def _write(self, event: Event) -> None:
        if self._records is None:
            return
        event.wall_time = time.time()
        with self._named():
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
