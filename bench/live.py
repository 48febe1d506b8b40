"""Live captions measured: delay, corrections, and what they cost, by a clock that is simulated.

    python -m bench.live --model=DIR --data=test.jsonl [--pretrained=FOLDER] [--count=24]
        [--sessions=1,4] [--policies=captions,no_drafts,no_previous,local_agreement]
        [--interval=1] [--step=0.5] [--guard=0.3] [--gap=1] [--clock=wall]

Recordings of the source, with silence between them, are spoken into so many sessions at once. The
clock is the time of the audio: audio comes in pieces of 0.1 s, and what is decoded takes as long as
it was measured to take, one batch behind another, as in the service. Nothing is waited for. The
voice detector, which runs beside the decoder, is not part of it.

`captions` is what this project does, `no_drafts` the same without the last hypothesis as the draft
of the next (the heads draft, where there are any), `no_previous` with drafts and no previous text,
and `local_agreement` the policy of whisper_streaming with an --interval, decoded greedily.

A word's end is where the text that stays has it. It has appeared once it was first shown at its
place, and is committed once it was shown as such, or in a settled stretch. *Changed* is the share
of words that were shown and then taken away or replaced, case and punctuation apart; *wrong* that
of committed words which the text that stays does not have. Encoder seconds are of padded audio.
With --clock=cpu decoding takes the CPU seconds of this process: on one core (``taskset -c 0``) they
are those of an idle machine, whatever runs beside.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import app, flags, logging

import mtp_jax
from bench.local_agreement import LocalAgreement
from mtp_jax import cli
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.data import open_source
from mtp_jax.data.text import plain
from mtp_jax.evaluation.metrics import word_errors
from mtp_jax.transcription.batching import choose, hand_out
from mtp_jax.transcription.live import LiveSession
from mtp_jax.transcription.live_events import Caption, LiveEvent
from mtp_jax.transcription.live_model import live_fields, live_segmenter
from mtp_jax.transcription.results import Segment, Word
from mtp_jax.transcription.transcriber import Transcriber

_MODEL = cli.model_flag()
_PRETRAINED = cli.pretrained_flag()
_DATA = flags.DEFINE_string("data", None, "a source", required=True)
_COUNT = flags.DEFINE_integer("count", 24, "recordings of it", lower_bound=1)
_SESSIONS = flags.DEFINE_list("sessions", ["1"], "at a time")
_POLICIES = flags.DEFINE_list("policies", ["captions", "local_agreement"], "that are compared")
_INTERVAL = flags.DEFINE_float("interval", 1.0, "s, of local_agreement", lower_bound=0.1)
_STEP = flags.DEFINE_float("step", 0.5, "s of new audio for a hypothesis", lower_bound=0.0)
_GUARD = flags.DEFINE_float("guard", 0.3, "s of audio behind a committed word", lower_bound=0.0)
_GAP = flags.DEFINE_float("gap", 1.0, "s of silence behind each recording", lower_bound=0.0)
_CLOCK = flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "of decoding")
_STRATEGY = flags.DEFINE_string("strategy", "auto", "of captions")

PIECE = 0.1  # s of audio that come at once


@dataclasses.dataclass
class Shown:
    """What a reader sees from a time on.

    Attributes:
        at: s.
        words: all of them; the first `committed` stay.
    """

    at: float
    words: list[Word]
    committed: int


class Stream:
    """Audio that is spoken into a session, and what was shown of it.

    Args:
        model: what decodes.
        audio: int16[T].
        late: s at which it begins.
    """

    def __init__(self, model: Transcriber, audio: np.ndarray, late: float) -> None:
        self.model, self.audio, self.late = model, audio, late
        self.shown: list[Shown] = []
        self.now = 0.0
        self._at, self._size = 0, round(PIECE * model.sample_rate)

    @property
    def next_piece(self) -> float:
        """When it comes; infinite behind the last."""
        if self._at >= len(self.audio):
            return np.inf
        return self.late + (self._at + self._size) / self.model.sample_rate

    def feed_until(self, now: float) -> None:
        """Takes what was said by then; events have the time of their piece."""
        while self.next_piece <= now < np.inf:
            self.now = self.next_piece
            self.feed(self.audio[self._at : self._at + self._size])
            self._at += self._size
            if self._at >= len(self.audio):
                self.end()

    session: LiveSession | LocalAgreement
    feed: Callable[[np.ndarray], None]
    end: Callable[[], None]


class CaptionStream(Stream):
    """Of live captions; `fields` of the session."""

    def __init__(self, model: Transcriber, audio: np.ndarray, late: float, **fields: object):
        super().__init__(model, audio, late)
        drafts = fields.pop("drafts")
        made = live_fields(
            model, _STRATEGY.value, condition_on_previous=bool(fields.pop("previous"))
        )
        made["drafts"] = made["drafts"] and drafts
        self.session = LiveSession(
            emit=self._happened, step=_STEP.value, guard=_GUARD.value, **made
        )
        self.segmenter = live_segmenter(model)
        self._settled: list[Word] = []

    def feed(self, samples: np.ndarray) -> None:
        ended = self.segmenter.feed(samples)
        self.session.update(ended, self.segmenter.open(), self.segmenter.seconds)

    def end(self) -> None:
        self.session.update(self.segmenter.finish(), None, self.segmenter.seconds)
        self.session.all_read()

    def _happened(self, event: LiveEvent) -> None:
        if not isinstance(event, Caption):
            return
        words = [*self._settled, *event.committed, *event.open]
        self.shown.append(Shown(self.now, words, len(words) - len(event.open)))
        if event.final:
            self._settled = words


class AgreementStream(Stream):
    """Of whisper_streaming's policy."""

    def __init__(self, model: Transcriber, audio: np.ndarray, late: float) -> None:
        super().__init__(model, audio, late)
        start = live_fields(model)["start"]
        self.session = LocalAgreement(
            start, self._show, model.sample_rate, _INTERVAL.value, model.longest
        )
        self.feed, self.end = self.session.feed, self.session.end

    def _show(self, committed: list[Word], rest: list[Word]) -> None:
        self.shown.append(Shown(self.now, [*committed, *rest], len(committed)))


@dataclasses.dataclass
class Load:
    """What decoding took: s of wall clock, s of padded audio, and batches."""

    busy: float = 0.0
    encoded: float = 0.0
    batches: int = 0
    chunks: int = 0


def simulate(model: Transcriber, streams: Sequence[Stream], strategy: str) -> Load:
    """Plays all streams to their ends."""
    load, now = Load(), 0.0
    config = model.runner.model.config
    silence = config.whisper.silence if config.whisper.present else 0.0
    while any(not stream.session.over for stream in streams):
        for stream in streams:
            stream.feed_until(now)
        waiting = [(stream, item) for stream in streams for item in stream.session.waiting]
        waiting.sort(key=lambda pair: pair[1].since)
        if not waiting:
            now = max(now, min(stream.next_piece for stream in streams))
            continue
        group = choose(waiting, lambda pair: -len(pair[1].chunk.audio), model.few_sizes)
        for stream, item in group:
            stream.session.waiting.remove(item)
        segments, seconds = decode(model, [item.chunk for _, item in group], strategy)
        longest = max(len(item.chunk.audio) for _, item in group)
        padded = next(n for n in model.lengths if n >= longest) / model.sample_rate
        load.busy += seconds
        load.encoded += len(group) * min(padded + silence, max(30.0, padded))
        load.batches, load.chunks = load.batches + 1, load.chunks + len(group)
        now += seconds
        for stream in streams:
            stream.feed_until(now)
            stream.now = now
        for (stream, item), segment in zip(group, segments, strict=True):
            hand_out([(stream.session, item)], [segment], 0.0, model.sample_rate, model.longest)
    return load


def decode(
    model: Transcriber, chunks: Sequence[Chunk], strategy: str
) -> tuple[list[Segment], float]:
    """Segments, and s that they took by the clock; never those of a compilation."""
    while True:
        compiling, start = model.runner.compile_seconds, time.process_time()
        segments, seconds = model.decode_timed(chunks, strategy)
        if _CLOCK.value == "wall":
            return segments, seconds
        if model.runner.compile_seconds == compiling:
            return segments, time.process_time() - start


def matches(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of words that two texts share, in order."""
    count = 0
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            break
        yield count, count
        count += 1
    tail = theirs[count : len(ours) + 20]
    matcher = difflib.SequenceMatcher(None, ours[count:], tail, autojunk=False)
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            yield count + block.a + i, count + block.b + i


def measure(streams: Sequence[Stream]) -> dict[str, float]:
    """Delays and corrections over all streams."""
    appeared: list[float] = []
    committed: list[float] = []
    showings = kept = wrong = promised = 0
    for stream in streams:
        final = stream.shown[-1].words if stream.shown else []
        words = [plain(word.text) for word in final]
        first, settled = np.full(len(final), np.inf), np.full(len(final), np.inf)
        before: list[str] = []
        most = 0
        for shown in stream.shown:
            texts = [plain(word.text) for word in shown.words]
            showings += len(texts) - sum(1 for _ in matches(texts, before))
            before = texts
            of_final = dict(matches(texts, words))
            for i, j in of_final.items():
                first[j] = min(first[j], shown.at)
                if i < shown.committed:
                    settled[j] = min(settled[j], shown.at)
            new = range(min(most, shown.committed), shown.committed)
            promised += len(new)
            wrong += sum(i not in of_final for i in new)
            most = max(most, shown.committed)
        kept += len(words)
        ends = np.array([word.end for word in final]) + stream.late
        appeared += (first - ends).tolist()
        committed += (settled - ends).tolist()
    return {
        "appears p50": float(np.median(appeared)),
        "p95": float(np.percentile(appeared, 95)),
        "commits p50": float(np.median(committed)),
        "p95 ": float(np.percentile(committed, 95)),
        "changed %": 100 * (showings - kept) / max(showings, 1),
        "wrong %": 100 * wrong / max(promised, 1),
    }


def spoken(model: Transcriber, sessions: int) -> tuple[list[np.ndarray], list[str]]:
    """Audio of each session, and its text."""
    source = open_source(_DATA.value, model.runner.model.config.data, model.sample_rate)
    picked = range(min(_COUNT.value, len(source.utterances)))
    gap = np.zeros(round(_GAP.value * model.sample_rate), np.int16)
    audio: list[list[np.ndarray]] = [[] for _ in range(sessions)]
    texts: list[list[str]] = [[] for _ in range(sessions)]
    for turn, i in enumerate(picked):
        audio[turn % sessions] += [source.waveform(i), gap]
        texts[turn % sessions].append(source.utterances[i].text)
    return [np.concatenate(parts) for parts in audio], [" ".join(parts) for parts in texts]


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    logging.set_verbosity(logging.WARNING)
    kinds: dict[str, Callable[..., Stream]] = {
        "captions": functools.partial(CaptionStream, drafts=True, previous=True),
        "no_drafts": functools.partial(CaptionStream, drafts=False, previous=True),
        "no_previous": functools.partial(CaptionStream, drafts=True, previous=False),
        "local_agreement": AgreementStream,
    }
    model = mtp_jax.load(_MODEL.value, pretrained=_PRETRAINED.value)
    normalizer = model.runner.model.config.evaluation.normalizer
    head = ("policy", "sessions", "appears p50", "p95", "commits p50", "p95 ", "changed %")
    head += ("wrong %", "calls/s", "encoder s/s", "busy %", "batch", "WER %")
    print(" | ".join(head), flush=True)
    for sessions in map(int, _SESSIONS.value):
        audio, texts = spoken(model, sessions)
        for name in _POLICIES.value:
            strategy = "greedy" if name == "local_agreement" else _STRATEGY.value
            streams = [kinds[name](model, each, late=0.37 * i) for i, each in enumerate(audio)]
            load = simulate(model, streams, strategy)
            seconds = sum(map(len, audio)) / model.sample_rate
            said = [
                " ".join(word.text for word in stream.shown[-1].words) if stream.shown else ""
                for stream in streams
            ]
            spent = max(stream.late + len(stream.audio) / model.sample_rate for stream in streams)
            row = measure(streams) | {
                "calls/s": sum(stream.session.calls for stream in streams) / seconds,
                "encoder s/s": load.encoded / seconds,
                "busy %": 100 * load.busy / spent,
                "batch": load.chunks / max(load.batches, 1),
                "WER %": word_errors(texts, said, normalizer).percent,
            }
            cells = [name, str(sessions), *(f"{row[key]:.2f}" for key in head[2:])]
            print(" | ".join(cells), flush=True)


if __name__ == "__main__":
    app.run(main)
