"""`Transcriber`: a model that turns recordings into transcripts."""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast, overload

import numpy as np

from mtp_jax import interrupts
from mtp_jax.audio.reading import AudioError, array_blocks, audio_blocks, log_warning
from mtp_jax.audio.segmentation import Chunk, cut
from mtp_jax.config import Config
from mtp_jax.data import Batch
from mtp_jax.decoding import CtcGreedy, DraftsError, Strategy, registry
from mtp_jax.inference.runner import Runner
from mtp_jax.inference.start_tokens import padded_starts
from mtp_jax.models.speech_windows import check_prompt
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.assembly import SegmentAssembler
from mtp_jax.transcription.batching import choose, hand_out
from mtp_jax.transcription.confidence import Calibration
from mtp_jax.transcription.prefetch import prefetch
from mtp_jax.transcription.recordings import Recording
from mtp_jax.transcription.results import Segment, Transcript
from mtp_jax.transcription.unspoken_context import without_unspoken

log = logging.getLogger("mtp_jax")
Key = TypeVar("Key")
Audio = str | os.PathLike[str] | np.ndarray
Several = list[Audio] | tuple[Audio, ...]
Named = Strategy | str

PREVIOUS_TOKENS = 63  # with the one that they begin with a step of `padded_starts`
_AHEAD = 4  # batches of chunks that are sorted by length before they are decoded


def log_compiling(rows: int, seconds: float) -> None:
    """Says that a program is compiled for a batch of so many rows of so many seconds."""
    log.info("compiling for %d x %.0f s: later runs find the program on disk", rows, seconds)


class Transcriber:
    """A model that turns recordings into transcripts; made by `mtp_jax.load`.

    Its methods may be called from several threads.

    Args:
        runner: the model.
        tau: of threshold decoding where a call names none.
        calibration: of confidences; None leaves them as the model has them.
        batch_size: chunks that are decoded at once, at most.

    Attributes:
        sample_rate: Hz of the waveforms that `decode` takes.
        longest: seconds of the longest chunk; `lengths`: to which chunks are padded, in samples.
        sizes: to which batches are padded: each length, size and strategy is a program. What is
            left at the end of a run so fits one of these, at least half full, and the run compiles
            one program for it and not several; `few_sizes`: of these, for those who compile all of
            them beforehand.
    """

    def __init__(
        self,
        runner: Runner,
        tau: float = 0.9,
        calibration: Calibration | None = None,
        batch_size: int = 16,
    ) -> None:
        config = runner.model.config
        self.runner, self.tau, self.calibration = runner, tau, calibration
        self.batch_size = batch_size
        self.sample_rate = config.front_end.sample_rate
        seconds = config.evaluation.bucket_seconds or config.data.bucket_seconds
        self.longest = seconds[-1]
        powers = {2**n for n in range(batch_size.bit_length())}
        self.sizes = tuple(sorted({*powers, batch_size}))
        self.few_sizes = tuple(sorted({1, min(4, batch_size), batch_size}))
        self.lengths = tuple(math.ceil(s * self.sample_rate) for s in seconds)
        self._assembler = SegmentAssembler(runner)

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies that the model can be decoded with."""
        return self.runner.strategies

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model can be told of; empty where it knows but one."""
        prompts = self.runner.model.vocabulary.prompts
        return tuple(code for code, _ in prompts.languages) if prompts else ()

    @property
    def takes_prompt(self) -> bool:
        """Whether the model can be told of earlier text, or of words to be expected."""
        vocabulary = self.runner.model.vocabulary
        return vocabulary.whisper is not None or (
            vocabulary.speech is not None and vocabulary.speech.takes_context
        )

    def start_tokens(
        self, language: str, task: str, prompt: str, previous: str = ""
    ) -> tuple[int, ...]:
        """The tokens that a text begins with; none of models that have no such tokens.

        Args:
            language, task, prompt: as `transcribe` takes them.
            previous: text just before. A Whisper is conditioned on its end, as much as fits behind
                the prompt into `PREVIOUS_TOKENS`. Other models are not.

        Raises:
            LanguageError: the model has no such language or task, or takes no prompt.
        """
        prompts, tokenizer = self.runner.model.vocabulary.prompts, self.runner.tokenizer
        if prompts is None:
            if language or prompt or task != "transcribe":
                raise LanguageError(
                    "the model takes no language, task or prompt: leave them out, or take a Whisper"
                    " or a speech LLM"
                )
            return ()
        config, said = self.runner.model.config, prompt.strip()
        if config.speech_llm.present:
            start = prompts.start_tokens(language, task, tuple(tokenizer.encode(said)))
            check_prompt(start, self.lengths[-1], config)
            return start
        # As much of the latest as Whisper was trained to see.
        most = config.whisper_decoder.positions // 2 - 1
        before = tokenizer.encode(f" {said}")[-most:] if said else []
        room = min(PREVIOUS_TOKENS, most) - len(before)
        if previous.strip() and room > 0:
            before += tokenizer.encode(f" {previous.strip()}")[-room:]
        return prompts.start_tokens(language, task, tuple(before))

    def strategy(self, name: str, tau: float | None = None) -> Strategy:
        """The strategy of that name.

        Args:
            name: one of `strategies`.
            tau: of "threshold"; the model's own by default.

        Raises:
            ValueError: there is no such strategy, or it is not one for this model.
        """
        made = strategy_of(name, self.runner.model.config, self.tau if tau is None else tau)
        if name not in self.strategies:
            raise DraftsError
        return made

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        rate: int | None = None,
        strategy: Named = "auto",
        language: str = "",
        task: str = "transcribe",
        prompt: str = "",
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: Several,
        *,
        rate: int | None = None,
        strategy: Named = "auto",
        language: str = "",
        task: str = "transcribe",
        prompt: str = "",
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Audio | Several,
        *,
        rate: int | None = None,
        strategy: Named = "auto",
        language: str = "",
        task: str = "transcribe",
        prompt: str = "",
    ) -> Transcript | list[Transcript]:
        """Transcribes one recording, or several in batches; each may be of any length.

        >>> transcript = model.transcribe("talk.mp3", strategy=Verify())  # doctest: +SKIP
        >>> transcript.text, transcript.words[0].start  # doctest: +SKIP
        >>> model.transcribe(samples, rate=48_000)  # doctest: +SKIP

        Args:
            audio: a file, or samples: int16 (full scale 32768) or floats (full scale 1.0), [T] or
                [T, channels]. A list (or tuple) of these gives a list.
            rate: Hz of samples; of files their own counts.
            strategy: a `mtp_jax.decoding.Strategy`, or the name of one.
            language: of a Whisper or a speech LLM: code of the one that is spoken, such as "de"; if
                it is empty it is detected, chunk by chunk.
            task: of a Whisper: "transcribe", or "translate" into English.
            prompt: of a Whisper, or a speech LLM that has a place for it: what was said before, or
                words that are to be expected.

        Returns:
            `Transcript`, with times in seconds; its text is empty where nobody speaks.

        Raises:
            AudioError: a recording cannot be used; of several, `transcribe_all` goes on with the
                rest.
            ValueError: there is no such strategy, or the model has no such language or task.
        """
        several = isinstance(audio, (list, tuple))
        items = list(cast(Several, audio) if several else [cast(Audio, audio)])
        found: dict[int, Transcript] = {}
        for key, outcome in self.transcribe_all(
            enumerate(items),
            rate=rate,
            strategy=strategy,
            language=language,
            task=task,
            prompt=prompt,
        ):
            if isinstance(outcome, AudioError):
                raise outcome
            found[key] = outcome
        results = [found[key] for key in range(len(items))]
        return results if several else results[0]

    def transcribe_all(
        self,
        recordings: Iterable[tuple[Key, Audio]],
        *,
        rate: int | None = None,
        strategy: Named = "auto",
        language: str = "",
        task: str = "transcribe",
        prompt: str = "",
        progress: Callable[[float], None] = lambda seconds: None,
        on_compile: Callable[[int, float], None] = log_compiling,
    ) -> Iterator[tuple[Key, Transcript | AudioError]]:
        """Transcribes any number of recordings of any length, in batches over all of them.

        What is held at a time is a few batches of chunks, and the texts of recordings that are
        under way. Recordings are read in a thread of its own, ahead of decoding.

        Args:
            recordings: a key each, and files or samples as `transcribe` takes them.
            rate, strategy, language, task, prompt: as `transcribe` takes them.
            progress: told the seconds of audio that are done, as they are.
            on_compile: told before a program is compiled, which may take half a minute: for a
                batch of how many rows, of how many seconds each. By default it is logged, as
                information, to ``mtp_jax``.

        Yields:
            Key and transcript, or what is wrong with the recording; in the order in which they are
            finished.

        Raises:
            ValueError: there is no such strategy, or the model has no such language or task.
        """
        start = self.start_tokens(language, task, prompt)
        chosen = self._chosen(strategy)
        pool = _AHEAD * self.batch_size
        running: dict[_Keyed[Key], None] = {}  # in the order of reading
        stopped = threading.Event()
        read = prefetch(self._read(recordings, rate, chosen, start, stopped), pool, stopped)
        try:
            for recording, chunk in read:
                running[recording] = None
                if isinstance(chunk, Chunk):
                    recording.add(chunk)
                elif chunk is None:
                    recording.all_read()
                else:
                    recording.fail(chunk)
                yield from _finished(running, progress)
                while sum(len(recording.waiting) for recording in running) >= pool:
                    self._decode_next(running, chosen, on_compile)
                    yield from _finished(running, progress)
            while running:
                self._decode_next(running, chosen, on_compile)
                yield from _finished(running, progress)
        finally:
            read.close()  # type: ignore[attr-defined]  # a generator

    def chunks(self, audio: Audio, rate: int | None = None) -> Iterator[Chunk]:
        """What a recording is cut into to be decoded, in order.

        Raises:
            AudioError: it cannot be used.
        """
        return self.cut(self._blocks(audio, rate, log_warning))

    def cut(
        self, blocks: Iterable[np.ndarray], start_tokens: tuple[int, ...] = ()
    ) -> Iterator[Chunk]:
        """Chunks of a recording that is read in blocks int16[T], as `chunks` makes them."""
        return cut(blocks, self.sample_rate, self.longest, start_tokens=start_tokens)

    def decode(self, chunks: Sequence[Chunk], strategy: Named = "auto") -> list[Segment]:
        """Decodes chunks in one batch, for those who make batches themselves.

        Args:
            chunks: int16[T] at `sample_rate`, of at most `longest` seconds each.
            strategy: as `transcribe` takes it.

        Returns:
            A segment each.
        """
        if not chunks:
            return []
        segments = self._decode(chunks, strategy)
        again = functools.partial(self._decode, strategy=strategy)
        return without_unspoken(segments, chunks, self.runner, again)

    def _decode(self, chunks: Sequence[Chunk], strategy: Named) -> list[Segment]:
        chosen, batch = self._chosen(strategy), self._batch(chunks)
        inference = self.runner.run(batch, chosen, with_alignment=True)
        kind = "ctc" if isinstance(chosen, CtcGreedy) else "decoder"
        return self._assembler.segments(inference, chunks, self.sample_rate, kind, self.calibration)

    def decode_timed(
        self, chunks: Sequence[Chunk], strategy: Named = "auto"
    ) -> tuple[list[Segment], float]:
        """`decode`, and the seconds that it took, compilation apart."""
        compiling, start = self.runner.compile_seconds, time.perf_counter()
        segments = self.decode(chunks, strategy)
        seconds = time.perf_counter() - start
        return segments, seconds - (self.runner.compile_seconds - compiling)

    def prepare(self, chunks: Sequence[Chunk], strategy: Named = "auto") -> None:
        """Compiles what `decode` needs for such a batch, unless it is there."""
        batch = self._batch(chunks)
        self.runner.compile(batch, self._chosen(strategy), with_alignment=True)

    def prepare_fallback(self, strategy: Named = "auto") -> None:
        """Compiles what `decode` needs for a text that went wrong (`inference.fallback`)."""
        one = self._batch([Chunk(0.0, np.zeros(0, np.int16), 0.0)])
        self.runner.compile_fallback(one, self._chosen(strategy), with_alignment=True)

    def join(self, segments: Sequence[Segment], chunks: Sequence[Chunk]) -> tuple[Segment, ...]:
        """Segments of one recording, in order, without words that two of them share."""
        recording = Recording()
        for chunk in chunks:
            recording.add(chunk)
        for item, segment in zip(list(recording.waiting), segments, strict=True):
            recording.found(item, segment)
        recording.all_read()
        return tuple(recording.segments)

    def _read(
        self,
        recordings: Iterable[tuple[Key, Audio]],
        rate: int | None,
        strategy: Strategy,
        start: tuple[int, ...],
        stopped: threading.Event,
    ) -> Iterator[tuple[_Keyed[Key], Chunk | AudioError | None]]:
        """Chunks of all recordings; None ends each, or what is wrong with it.

        It ends at the next block once `stopped` is set: hours of silence hold no chunk.
        """
        for key, audio in recordings:
            recording = _Keyed(key, strategy.name, self.calibration is not None)

            def counted(
                audio: Audio = audio, recording: _Keyed[Key] = recording
            ) -> Iterator[np.ndarray]:
                def warn(message: str) -> None:
                    log_warning(message)
                    recording.warnings.append(message)

                for block in self._blocks(audio, rate, warn):
                    if stopped.is_set():
                        return
                    recording.seconds += len(block) / self.sample_rate
                    yield block

            try:
                for chunk in self.cut(counted(), start):
                    yield recording, chunk
            except AudioError as error:
                yield recording, error
            else:
                yield recording, None
            if stopped.is_set():
                return

    def _blocks(
        self, audio: Audio, rate: int | None, warn: Callable[[str], None]
    ) -> Iterator[np.ndarray]:
        if isinstance(audio, (str, os.PathLike)):
            return audio_blocks(audio, self.sample_rate, warn=warn)
        return array_blocks(audio, rate, self.sample_rate)

    def _decode_next(
        self,
        running: Iterable[_Keyed[Key]],
        strategy: Strategy,
        on_compile: Callable[[int, float], None],
    ) -> None:
        """Decodes a batch of what waits."""
        interrupts.raise_if_requested()
        waiting = [(recording, item) for recording in running for item in recording.waiting]
        group = choose(waiting, lambda pair: len(pair[1].chunk.audio), self.sizes)
        for recording, item in group:
            recording.waiting.remove(item)
        chunks = [item.chunk for _, item in group]
        batch = self._batch(chunks)
        if not self.runner.is_compiled(batch, strategy, with_alignment=True):
            rows, length = batch.audio.shape
            on_compile(rows, length / self.sample_rate)
        segments, seconds = self.decode_timed(chunks, strategy)
        hand_out(group, segments, seconds, self.sample_rate, self.longest)

    def _chosen(self, strategy: Named) -> Strategy:
        return self.strategy(strategy) if isinstance(strategy, str) else strategy

    def _batch(self, chunks: Sequence[Chunk]) -> Batch:
        """A batch of one of few shapes."""
        longest = max(len(chunk.audio) for chunk in chunks)
        bound = next((b for b in self.lengths if b >= longest), None)
        if bound is None:
            raise ValueError(f"a chunk of {longest / self.sample_rate:.1f} s exceeds `longest`")
        if len(chunks) > self.batch_size:
            raise ValueError(f"{len(chunks)} chunks exceed a batch of {self.batch_size}")
        rows = next(size for size in self.sizes if size >= len(chunks))
        audio = np.zeros((rows, bound), np.int16)
        length = np.zeros(rows, np.int32)
        for row, chunk in enumerate(chunks):
            audio[row, : len(chunk.audio)] = chunk.audio
            length[row] = len(chunk.audio)
        batch = Batch(
            audio=audio,
            audio_length=length,
            tokens=np.zeros((rows, 0), np.int32),
            token_length=np.zeros(rows, np.int32),
            index=np.where(np.arange(rows) < len(chunks), np.arange(rows), -1).astype(np.int32),
            start=self._start(chunks, rows),
        )
        if all(chunk.draft is None for chunk in chunks):
            return batch
        drafts = [chunk.draft or () for chunk in chunks]
        return batch.with_drafts(drafts, self.runner.model.config.data.max_tokens)

    def _start(self, chunks: Sequence[Chunk], rows: int) -> np.ndarray | None:
        """int32[rows, P] tokens that texts begin with."""
        prompts = self.runner.model.vocabulary.prompts
        if prompts is None:
            return None
        usual = prompts.start_tokens()
        begin = [chunk.start_tokens or usual for chunk in chunks]
        return padded_starts([*begin, *[usual] * (rows - len(begin))], usual)


class _Keyed(Recording, Generic[Key]):
    """A recording, whose it is, and the seconds of it that progress was told of."""

    def __init__(self, key: Key, strategy: str, calibrated: bool) -> None:
        super().__init__(strategy, calibrated)
        self.key, self.told = key, 0.0


def _finished(
    running: dict[_Keyed[Key], None], progress: Callable[[float], None]
) -> Iterator[tuple[Key, Transcript | AudioError]]:
    """Takes those that are over out of `running`, and tells of what is done."""
    for recording in list(running):
        if recording.covered > recording.told:
            progress(recording.covered - recording.told)
            recording.told = recording.covered
        outcome = recording.outcome
        if outcome is None:
            continue
        del running[recording]
        assert isinstance(outcome, Transcript | AudioError)
        yield recording.key, outcome


def strategy_of(name: str, config: Config, tau: float) -> Strategy:
    """The strategy of that name, with the options of a model's config.

    Raises:
        ValueError: there is no such strategy.
    """
    e = config.evaluation
    return registry.get(name).make(
        registry.Options(
            heads=config.heads.count,
            tau=tau,
            draft_width=e.draft_width,
            beams=e.beams,
            rounds=e.beam_rounds,
            length_power=e.length_power,
        )
    )
