"""Ctrl-C (SIGINT) and SIGTERM as one flag, which loops look at where they can stop.

An exception that a signal raises anywhere leaves threads, native code and half a file behind. So
the handlers raise nothing: loops call `raise_if_requested` between two steps, batches or blocks of
audio. Outside of `handled` there are no handlers, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "SIGTERM"}


class Interrupted(BaseException):
    """A signal asked the command to end; like KeyboardInterrupt, no error of the work itself.

    Args:
        number: of the signal.
        saved: what was saved and how to go on, for the message; empty where nothing was.

    Attributes:
        exit_status: of the command: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        name = _NAMES[signal.Signals(number)]
        super().__init__(f"{name}: {saved}" if saved else name)
        self.number, self.saved = number, saved
        self.exit_status = 128 + number


class _State:
    """Of this process, as signal handlers are."""

    handled = False
    deferred = False
    requested: int | None = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Makes the signals a flag; a second Ctrl-C ends the process at once.

    Within another one, or outside of the main thread (where Python handles no signals), it does
    nothing.
    """
    if _State.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before: dict[signal.Signals, Any] = {}
    # Python runs a handler only once native code (a compilation, say) has returned. The number of
    # the signal is in the pipe at once.
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading,), daemon=True)
    watcher.start()
    try:
        _State.handled, _State.requested = True, None
        for each in SIGNALS:
            before[each] = signal.signal(each, _note)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)
        _State.handled, _State.requested = False, None


def _note(number: int, frame: object) -> None:
    _State.requested = _State.requested or number


def _watch(reading: int) -> None:
    """Notes each signal as it comes; a second SIGINT ends the process."""
    presses = 0
    while received := os.read(reading, 1):
        number = received[0]
        if number not in SIGNALS:
            continue
        _note(number, None)
        presses += number == signal.SIGINT
        if presses > 1:
            sys.stderr.write("\ninterrupted twice: ended at once\n")
            sys.stderr.flush()
            os._exit(128 + signal.SIGINT)


def requested() -> int | None:
    """Number of the signal that came first since `handled`, or None."""
    return _State.requested


def raise_if_requested() -> None:
    """Raises:
    Interrupted: a signal came, and this is not inside of `deferred`.
    """
    if _State.requested and not _State.deferred:
        raise Interrupted(_State.requested)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, `raise_if_requested` does nothing: whoever uses this looks at `requested`."""
    before, _State.deferred = _State.deferred, True
    try:
        yield
    finally:
        _State.deferred = before


def checked(items: Iterable[Item]) -> Iterator[Item]:
    """`items`, with a look at the flag before each and behind the last."""
    for item in items:
        raise_if_requested()
        yield item
    raise_if_requested()


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started within never receive Ctrl-C, which a terminal sends to all.

    They inherit the mask of signals. Their parent receives it, and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
