"""Dynamic batching: chunks of several requests, decoded together by one thread.

A few threads read recordings and cut them; one owns the model. It takes chunks from the requests in
turn, so that an hour of audio does not keep a sentence waiting, and decodes as many as there are,
up to a batch. Where fewer wait it gives others `max_wait` to come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mtp_jax.audio.reading import AudioError, audio_blocks
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.decoding import Strategy
from mtp_jax.serving.job import Cancelled, Job
from mtp_jax.serving.live_job import LiveJob
from mtp_jax.serving.metrics import Metrics
from mtp_jax.transcription.batching import choose, hand_out
from mtp_jax.transcription.live import LiveSession
from mtp_jax.transcription.live_model import live_chunks, live_fields
from mtp_jax.transcription.recordings import Event, Waiting
from mtp_jax.transcription.transcriber import Transcriber

Work = Job | LiveJob
_READERS = 4
_AHEAD = 2  # batches of one recording that are cut ahead of decoding

log = logging.getLogger("mtp_jax")


class TooLong(Exception):
    """The recording is longer than the service takes."""


class Stopped(Exception):
    """Nothing is decoded any more: the thread that decodes failed, or the engine is closed."""


class Engine:
    """Decodes recordings of many requests in batches; `start` and `close` it.

    Args:
        model: what transcribes. No other thread decodes with it while the engine runs.
        max_wait: seconds that a chunk waits for others to share its batch with.
        max_seconds: of a recording.
        metrics: told what is done.
        warm: strategies whose programs are compiled before `ready`, by name.
        live: sessions of live captions for which they are, at a time.
    """

    def __init__(
        self,
        model: Transcriber,
        max_wait: float,
        max_seconds: float,
        metrics: Metrics,
        warm: tuple[str, ...] = (),
        live: int = 0,
    ) -> None:
        self._live = live
        self.model, self.max_wait, self.max_seconds = model, max_wait, max_seconds
        self._metrics, self._warm = metrics, warm
        self._jobs: deque[Work] = deque()  # those with chunks waiting, whose turn is first first
        self._change = threading.Condition()
        self._held: set[Work] = set()  # all that are not over
        self._open: set[Job] = set()  # all whose file may be open
        self._closing = self._failed = False
        self._readers = ThreadPoolExecutor(_READERS, "mtp_jax-read")
        self._worker = threading.Thread(target=self._work, name="mtp_jax-decode", daemon=True)
        self._ready = threading.Event()
        metrics.watch_chunks(lambda: sum(len(job.waiting) for job in list(self._jobs)))

    def start(self) -> None:
        """Starts the thread that decodes; it compiles first."""
        self._worker.start()

    @property
    def ready(self) -> bool:
        """Whether programs are compiled and the thread that decodes is alive."""
        return self._ready.is_set() and self._worker.is_alive() and not self._failed

    @property
    def failed(self) -> bool:
        """Whether the thread that decodes ended by an error; every job fails from then on."""
        return self._failed

    def close(self) -> None:
        """Ends all threads; jobs that are not over fail with `Stopped`."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._worker.join()
        with self._change:
            self._fail_all()
        self._readers.shutdown(cancel_futures=True)
        for job in self._open:
            job.chunks.close()  # type: ignore[attr-defined]  # a generator
        self._open.clear()

    def submit(
        self,
        path: str,
        strategy: Strategy,
        name: str,
        emit: Callable[[Event], None],
        start_tokens: tuple[int, ...] = (),
    ) -> Job:
        """Begins to transcribe a file.

        Args:
            path: of the file, there until the job is over.
            strategy, name: that decodes it.
            emit: told each `Segment` in order, as soon as nothing can change it, and at last the
                `Transcript`, or what went wrong: `AudioError`, `TooLong`, `Stopped`, or any other
                error.
            start_tokens: as `Transcriber.start_tokens` makes them.
        """
        calibrated = self.model.calibration is not None

        def chunks(job: Job) -> Iterator[Chunk]:
            rate = self.model.sample_rate

            def counted() -> Iterator[np.ndarray]:
                for block in audio_blocks(path, rate, warn=job.warnings.append):
                    job.seconds += len(block) / rate
                    if job.over or self._closing:
                        raise Stopped
                    if job.seconds > self.max_seconds:
                        raise TooLong
                    yield block

            return self.model.cut(counted(), start_tokens)

        job = Job(chunks, strategy, name, calibrated, emit)
        with self._change:
            if self._failed or self._closing:
                job.fail(Stopped())
            else:
                self._held.add(job)
                self._open.add(job)
                self._readers.submit(self._read, job)
        return job

    def submit_live(self, make: Callable[[], LiveJob]) -> LiveJob:
        """Begins live captions; what is heard comes by `change`."""
        job = make()
        with self._change:
            if self._failed or self._closing:
                job.fail(Stopped())
            else:
                self._held.add(job)
        return job

    def change(self, job: LiveJob, how: Callable[[], None]) -> None:
        """Calls `how`, which changes a job, and has decoded what waits then."""
        with self._change:
            how()
            self._queue(job)
            self._forget(job)

    def cancel(self, job: Work) -> None:
        """Nobody waits for `job`: it is given up as soon as can be."""
        with self._change:
            self._fail(job, Cancelled())

    def _read(self, job: Job) -> None:
        """Cuts the recording until enough of it waits."""
        try:
            while True:
                with self._change:
                    if job.over:
                        break
                    if job.outstanding >= _AHEAD * self.model.batch_size:
                        job.parked = True
                        return
                chunk = next(job.chunks, None)
                with self._change:
                    if chunk is None:
                        job.all_read()
                        self._forget(job)
                        break
                    if not job.over:
                        job.add(chunk)
                        self._queue(job)
        except BaseException as error:  # whatever it is: nobody waits for ever
            if not isinstance(error, (AudioError, TooLong, Stopped)):
                log.exception("reading a recording failed")
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
            with self._change:
                self._fail(job, failure)
        job.chunks.close()  # type: ignore[attr-defined]  # a generator
        with self._change:
            self._open.discard(job)

    def _queue(self, job: Work) -> None:
        if job.waiting and job not in self._jobs:
            self._jobs.append(job)
        elif not job.waiting and job in self._jobs:  # what waited was not needed any more
            self._jobs.remove(job)
        self._change.notify_all()

    def _fail(self, job: Work, error: Exception) -> None:
        job.fail(error)
        if job in self._jobs:
            self._jobs.remove(job)
        self._forget(job)
        if isinstance(job, Job) and job.parked and not self._closing:
            self._read_on(job)  # which closes its file

    def _fail_all(self) -> None:
        for job in list(self._held):
            self._fail(job, Stopped())

    def _forget(self, job: Work) -> None:
        if job.over:
            self._held.discard(job)

    def _work(self) -> None:
        try:
            self._compile()
            self._ready.set()
            while batch := self._next_batch():
                self._decode(batch)
        except BaseException:  # whatever it is: nobody waits for ever
            log.exception("the thread that decodes ended: no request is answered any more")
            with self._change:
                self._failed = True
                self._fail_all()

    def _compile(self) -> None:
        start = time.monotonic()
        for name in self._warm:
            for samples in self.model.lengths:
                for size in self.model.few_sizes:
                    if self._closing:
                        return
                    chunk = Chunk(0.0, np.zeros(samples, np.int16), 0.0)
                    self.model.prepare([chunk] * size, name)
            self.model.prepare_fallback(name)
            session = LiveSession(**live_fields(self.model, name))
            for chunk in live_chunks(self.model, session) if self._live else ():
                for size in self.model.few_sizes:
                    if size <= self._live and not self._closing:
                        self.model.prepare([chunk] * size, name)
        if self._warm:  # takes minutes on a CPU: whoever started the service waits for it
            log.info("ready after %.0f s", time.monotonic() - start)

    def _next_batch(self) -> list[tuple[Work, Waiting]]:
        """Waits for work; empty when the engine is closed."""
        with self._change:
            while not self._closing:
                if not self._jobs:
                    self._change.wait()
                    continue
                batch = self._choose()
                left = batch[0][1].since + self.max_wait - time.monotonic()
                if len(batch) < self.model.batch_size and left > 0:
                    self._change.wait(left)
                    continue
                for job, item in batch:
                    job.waiting.remove(item)
                    self._jobs.remove(job)
                    if job.waiting:
                        self._jobs.append(job)  # it is the turn of others
                return batch
            return []

    def _choose(self) -> list[tuple[Work, Waiting]]:
        """The chunk whose turn it is, and others that cost it no time.

        They have its strategy, and need no more padding than it does: the longest first, and of
        these the first chunks of every job before the second ones.
        """
        strategy, longest = self._jobs[0].strategy, self._length(self._jobs[0].waiting[0])
        turns = [
            (turn, place, job, item)
            for place, job in enumerate(self._jobs)
            if job.strategy == strategy
            for turn, item in enumerate(job.waiting)
            if self._length(item) <= longest
        ]
        turns.sort(key=lambda each: each[:2])
        waiting = [(job, item) for _, _, job, item in turns]
        return choose(waiting, lambda pair: -self._length(pair[1]), self.model.few_sizes)

    def _length(self, item: Waiting) -> int:
        """To which a chunk is padded, in samples."""
        return next(n for n in self.model.lengths if n >= len(item.chunk.audio))

    def _decode(self, batch: list[tuple[Work, Waiting]]) -> None:
        model, first = self.model, batch[0][0]
        chunks = [item.chunk for _, item in batch]
        try:
            segments, seconds = model.decode_timed(chunks, first.strategy)
        except Exception as error:
            log.exception("decoding failed")
            with self._change:
                for job, _ in batch:
                    self._fail(job, error)
            return
        audio = sum(len(chunk.audio) for chunk in chunks) / model.sample_rate
        self._metrics.decoded(first.name, segments, audio, seconds)
        with self._change:
            hand_out(batch, segments, seconds, model.sample_rate, model.longest)
            for job in dict.fromkeys(job for job, _ in batch):
                self._queue(job)  # what was halved waits again
                self._forget(job)
                if not isinstance(job, Job) or not job.parked or job.over:
                    continue
                if job.outstanding < model.batch_size:
                    self._read_on(job)

    def _read_on(self, job: Job) -> None:
        job.parked = False
        self._readers.submit(self._read, job)
