"""An iterator run ahead of its reader, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mtp_jax import interrupts

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], size: int, stopped: threading.Event | None = None) -> Iterator[T]:
    """`items`, of which up to `size` are made before they are asked for.

    What making them raises is raised here. Closing the iterator ends the thread, once the item that
    it makes is made.

    Args:
        items: made in a thread.
        size: at most so many wait.
        stopped: set when the iterator is closed: `items` that take long to make one look at it.

    Raises:
        Interrupted: between two items, where a command was told to end.
    """
    made: queue.Queue[Any] = queue.Queue(size)
    stopped = stopped or threading.Event()

    def offer(item: object) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                offer((item, None))
                if stopped.is_set():
                    break
        except BaseException as error:
            offer((None, error))
        finally:
            if close := getattr(iterator, "close", None):
                close()
            offer(_END)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            interrupts.raise_if_requested()
            try:
                taken = made.get(timeout=0.2)
            except queue.Empty:  # hours of silence may lie between two items
                continue
            if taken is _END:
                return
            item, error = taken
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
