"""Captions of one stream, decoded by one model as the audio comes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mtp_jax.audio.waveform import closed
from mtp_jax.transcription.batching import hand_out
from mtp_jax.transcription.live import LiveSession
from mtp_jax.transcription.live_events import LiveEvent
from mtp_jax.transcription.live_model import live_chunks, live_fields, live_segmenter
from mtp_jax.transcription.transcriber import Transcriber

_WAIT = 0.1  # s until a signal is looked for
_BEHIND = 600  # s of audio that are held where decoding does not keep up; reading then waits
Received = np.ndarray | Exception | None  # None ends the stream


def transcribe_live(
    model: Transcriber,
    blocks: Iterable[np.ndarray],
    *,
    strategy: str = "auto",
    language: str = "",
    task: str = "transcribe",
    prompt: str = "",
    stop: Callable[[], bool] = lambda: False,
    on_ready: Callable[[], None] | None = None,
) -> Iterator[LiveEvent]:
    """Captions of a stream while it is read; the blocks are read in a thread of its own.

    >>> for event in transcribe_live(model, blocks_of_microphone):  # doctest: +SKIP
    ...     if isinstance(event, Caption) and event.final:
    ...         print(event.text)

    Args:
        model: what decodes.
        blocks: int16[T] at the model's rate, which may take as long to come as they last.
        strategy: name of one; `language`, `task`, `prompt`: as `Transcriber.transcribe` takes them.
        stop: whether the stream is over, whatever follows in it; asked several times per second.
        on_ready: called once all programs are compiled, which is then done before anything is
            decoded; None compiles them as they are needed.

    Yields:
        Events as they happen; the last is the `Transcript`.

    Raises:
        Exception: what `blocks` raise, once the audio before is settled.
    """
    events: deque[LiveEvent] = deque()
    fields = live_fields(model, strategy, language, task, prompt)
    session = LiveSession(emit=events.append, **fields)
    received: queue.Queue[Received] = queue.Queue(maxsize=_BEHIND * 10)
    stopped = threading.Event()
    reader = threading.Thread(
        target=_read, args=(blocks, received, model.sample_rate // 10, stopped), daemon=True
    )
    reader.start()
    error: Exception | None = None
    try:
        if on_ready:
            prepare_live(model, strategy, session)
            on_ready()
        with live_segmenter(model) as segmenter:
            while not session.over:
                wait = not (session.waiting or stopped.is_set())
                for block in _arrived(received, wait):
                    if stopped.is_set():
                        break
                    if isinstance(block, np.ndarray):
                        ended = segmenter.feed(block)
                        session.update(ended, segmenter.open(), segmenter.seconds)
                        continue
                    error = block
                    session.update(segmenter.finish(), None, segmenter.seconds)
                    session.all_read()
                if stop() and not stopped.is_set():
                    stopped.set()
                    session.update(segmenter.finish(), None, segmenter.seconds)
                    session.all_read()
                _decode_one(model, session, strategy)
                while events:
                    yield events.popleft()
    finally:
        stopped.set()
    if error is not None:
        raise error


def _read(
    blocks: Iterable[np.ndarray],
    received: queue.Queue[Received],
    most: int,
    stopped: threading.Event,
) -> None:
    """Puts parts of at most so many samples into the queue, and how the stream ended."""

    def put(item: Received) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                received.put(item, timeout=_WAIT)
                break

    end: Exception | None = None
    try:
        with closed(blocks):
            for block in blocks:
                for at in range(0, len(block), most):
                    put(block[at : at + most])
                if stopped.is_set():
                    return
    except Exception as error:
        end = error
    put(end)


def _arrived(received: queue.Queue[Received], wait: bool) -> Iterator[Received]:
    """What there is; where there is nothing else to do, the next that comes."""
    try:
        yield received.get(wait, _WAIT if wait else None)
        while True:
            yield received.get_nowait()
    except queue.Empty:
        return


def _decode_one(model: Transcriber, session: LiveSession, strategy: str) -> None:
    if not session.waiting:
        return
    item = session.waiting.popleft()
    segments, seconds = model.decode_timed([item.chunk], strategy)
    hand_out([(session, item)], segments, seconds, model.sample_rate, model.longest)


def prepare_live(model: Transcriber, strategy: str, session: LiveSession) -> None:
    """Compiles what captions of `session` need, unless it is there."""
    for chunk in live_chunks(model, session):
        model.prepare([chunk], strategy)
    model.prepare_fallback(strategy)
