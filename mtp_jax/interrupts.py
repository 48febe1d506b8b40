"""Ctrl-C (SIGINT) and SIGTERM as one flag, which loops look at where they can stop.

An exception that a signal raises anywhere leaves threads, native code and half a file behind. So
the handlers raise nothing: loops call `raise_if_requested` between two steps, batches or blocks of
audio. Before `install` and outside of `handled` there are no handlers, and nothing here does
anything.

Commands call `install` before they import what takes seconds, so nothing but what is light may be
imported here.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

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


def install() -> None:
    """Makes the signals a flag for the rest of the process; the first thing that a command does.

    They stay one while Python joins threads and runs exit handlers. Behind those the status is
    settled and Python takes its handlers away, so the signals are ignored to the end: by default
    they would kill the process amid its clean-up, whatever status it was about to end with.

    Within another one, or outside of the main thread (where Python handles no signals), it does
    nothing.
    """
    if _can_handle():
        _handle()
        atexit.register(_ignore)  # the first to be registered is the last to run


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Makes the signals a flag within; a second Ctrl-C ends the process at once.

    Within another one, after `install`, or outside of the main thread, it does nothing.
    """
    if not _can_handle():
        yield
        return
    with _handle():
        yield


def _can_handle() -> bool:
    return not _State.handled and threading.current_thread() is threading.main_thread()


def _handle() -> contextlib.ExitStack:
    """Installs the handlers; what is returned takes them away when it is closed."""
    undo = contextlib.ExitStack()
    undo.callback(_forget)
    _State.handled, _State.requested = True, None
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading,), daemon=True)
    undo.callback(os.close, reading)
    undo.callback(watcher.join)
    undo.callback(os.close, writing)  # ends the watcher
    # Python runs a handler only once native code (a compilation, say) has returned. The number of
    # the signal is in the pipe at once.
    undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
    for each in SIGNALS:
        undo.callback(signal.signal, each, signal.signal(each, _note))
    watcher.start()
    return undo


def _forget() -> None:
    _State.handled, _State.requested = False, None


def _ignore() -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


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
    """Number of the signal that came first, or None."""
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
