"""Captions of what is said while it is said: a recording whose end is not there yet.

The stretch that is being spoken is decoded again and again as more of it is heard; the last
hypothesis is the draft of the next, so that this takes a call or two where nothing changes. Once a
pause ends it, the stretch is decoded as a whole (unless the last hypothesis was of all of it
already). So what stays is the text of transcribing the same stretches at once, whatever the
hypotheses were.

A Whisper is told the end of what was said before, if that is fit to be told.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mtp_jax.audio.live_cutting import LiveCutter, Stretch
from mtp_jax.audio.segmentation import PAUSE, Chunk
from mtp_jax.audio.vad import WINDOW_SECONDS
from mtp_jax.decoding import registry
from mtp_jax.inference.fallback import MAX_COMPRESSION, compression
from mtp_jax.transcription.agreement import GUARD, Agreement
from mtp_jax.transcription.assembly import UNLIKELY
from mtp_jax.transcription.recordings import Event, Place, Recording, Waiting
from mtp_jax.transcription.repetition import find_repetition
from mtp_jax.transcription.results import Segment, Word
from mtp_jax.transcription.transcriber import EARLIER, Transcriber

LONGEST = 12.0  # s of a stretch: each hypothesis encodes all of it
STEP = 0.5  # s of new audio that a hypothesis waits for
_HYPOTHESIS: Place = ()  # of no chunk
_REMEMBERED = 1000  # characters of what was said before; fewer are told


@dataclasses.dataclass(frozen=True)
class Started:
    """Somebody begins to speak, or a stretch that was cut goes on.

    Attributes:
        number: of the stretch; `at`: s from the beginning at which it begins.
    """

    number: int
    at: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stretch is over, its text to come.

    Attributes:
        number: of the stretch; `at`: s from the beginning at which it ends.
    """

    number: int
    at: float


@dataclasses.dataclass(frozen=True)
class Caption:
    """What a stretch says, as far as it was heard.

    Attributes:
        number: of the stretch; `start`: s from the beginning at which it begins.
        committed: words that stay while it is open; all of them once it is final.
        open: words behind them that may change.
        final: the stretch is settled.
        heard: s from the beginning at which its audio ends.
        calls: of the decoder for the recording so far, `drafter_calls`: of a model that drafts.
        tokens: that they gave, those of every hypothesis.
        segments: of a final caption.
    """

    number: int
    start: float
    committed: tuple[Word, ...]
    open: tuple[Word, ...]
    final: bool
    heard: float
    calls: int
    drafter_calls: int = 0
    tokens: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def text(self) -> str:
        """All words."""
        return joined([*self.committed, *self.open])


LiveEvent = Started | Ended | Caption | Event


def joined(words: Sequence[Word]) -> str:
    """Their text."""
    return " ".join(word.text for word in words)


class LiveSession(Recording):
    """State of a recording that is being made; at most one hypothesis of it waits or is decoded.

    As of every `Recording`, who uses it from several threads holds a lock around each method.

    Args:
        start: the tokens that a text begins with, given what was said before (empty: nothing).
        strategy: name of what decodes it.
        drafts: whether hypotheses are drafts of the next.
        calibrated: whether confidences are.
        emit: told every event; must not block.
        sample_rate: Hz.
        step: s of new audio that a hypothesis waits for.
        guard: s that must have been heard behind a word before it is committed.

    Attributes:
        tokens: that were decoded, those of every hypothesis.
    """

    def __init__(
        self,
        start: Callable[[str], tuple[int, ...]],
        strategy: str = "",
        drafts: bool = True,
        calibrated: bool = False,
        emit: Callable[[LiveEvent], None] = lambda event: None,
        sample_rate: int = 16_000,
        step: float = STEP,
        guard: float = GUARD,
    ) -> None:
        super().__init__(strategy, calibrated, emit)
        self._tell: Callable[[LiveEvent], None] = emit
        self.start, self._drafts, self._rate = start, drafts, sample_rate
        self._step, self._guard = step, guard
        self.parted = True
        self.tokens = 0
        self._stretch: Stretch | None = None  # that is open
        self._closed: deque[Stretch] = deque()  # to be decoded
        self._settling: Stretch | None = None  # that is being decoded
        self._settled: list[Segment] = []  # of it
        self._told = 0  # stretches whose beginning was told
        self._forgotten = 0  # those before it that are not over were forgotten
        self._asked: Waiting | None = None  # the hypothesis that waits or is being decoded
        self._latest: tuple[int, int] | None = None  # number and samples of the last one asked for
        self._known: tuple[int, int, Segment] | None = None  # of the last hypothesis
        self._agreement = Agreement(guard)
        self._earlier = ""  # text that is fit to be told
        self._ending = False

    @property
    def behind(self) -> int:
        """Stretches that are over and not settled."""
        return len(self._closed) + (self._settling is not None)

    def update(self, closed: Sequence[Stretch], stretch: Stretch | None, seconds: float) -> None:
        """Takes what the cutter made of new audio.

        Args:
            closed: stretches that are over.
            stretch: the one that is open, if any.
            seconds: of audio in all.
        """
        if self.over:
            return
        self.seconds = seconds
        for each in closed:
            self._begin(each)
            self._tell(Ended(each.number, each.start + len(each.audio) / self._rate))
            self._closed.append(each)
        if stretch is not None:
            self._begin(stretch)
        self._stretch = stretch
        self._offer()

    def clear(self, seconds: float) -> None:
        """Forgets the stretch that is open: its cutter did."""
        if self._asked is not None and self._asked in self.waiting:
            self._drop_hypothesis()
        self._forgotten = self._told
        self.update([], None, seconds)

    def all_read(self) -> None:
        """There is no more audio; what was heard is to be closed before."""
        self._ending = True
        self._offer()

    def found(self, item: Waiting, segment: Segment) -> None:
        """`item` was decoded."""
        self.tokens += len(segment.tokens)
        if item.place == _HYPOTHESIS:
            self._heard(item, segment)
        else:
            self._settle_with(item, segment)
        self._offer()

    def _settle_with(self, item: Waiting, segment: Segment) -> None:
        if not self._goes_wrong(item, segment.looped or not segment.complete):
            super().found(item, segment)
            self._settle_stretch()

    def split(self, item: Waiting, parts: list[Chunk]) -> None:
        """The text of `item` has no end: that of a hypothesis is not shown."""
        if item.place == _HYPOTHESIS:
            self._asked = None
            self._offer()
        elif not self._goes_wrong(item, True):
            super().split(item, parts)

    def _goes_wrong(self, item: Waiting, wrong: bool) -> bool:
        """A text that goes wrong behind what was said before is decoded without."""
        alone = self.start("")
        if not wrong or item.chunk.start_tokens == alone:
            return False
        self._earlier = ""
        super().split(item, [item.chunk._replace(start_tokens=alone)])
        return True

    def _begin(self, stretch: Stretch) -> None:
        if stretch.number >= self._told:
            self._told = stretch.number + 1
            self._tell(Started(stretch.number, stretch.start))

    def _offer(self) -> None:
        """Puts what is to be decoded next into `waiting`."""
        if self.over or self._settling is not None:
            return
        since = None
        if self._asked is not None:
            if self._asked not in self.waiting:
                return  # it is being decoded
            since = self._asked.since
        if self._closed:
            self._drop_hypothesis()
            self._settle_next(self._closed.popleft())
        elif self._stretch is not None:
            self._ask(self._stretch, since)
        elif self._ending:
            super().all_read()

    def _drop_hypothesis(self) -> None:
        if self._asked is not None:
            self.waiting.remove(self._asked)
            self._asked = None

    def _ask(self, stretch: Stretch, since: float | None) -> None:
        """For a hypothesis of `stretch` if there is something new in it."""
        number, samples = self._latest or (-1, 0)
        new = len(stretch.audio) - (samples if number == stretch.number else 0)
        behind = self.seconds - stretch.start - len(stretch.audio) / self._rate
        # Once there is a pause, what it closes is known: it may as well be decoded now.
        if since is None and new < (1 if behind > WINDOW_SECONDS else self._step * self._rate):
            return
        self._drop_hypothesis()
        self._latest = stretch.number, len(stretch.audio)
        item = Waiting(_HYPOTHESIS, self._chunk(stretch))
        self._asked = item if since is None else dataclasses.replace(item, since=since)
        self.waiting.append(self._asked)

    def _chunk(self, stretch: Stretch) -> Chunk:
        chunk = Chunk(
            stretch.start,
            stretch.audio,
            len(stretch.audio) / self._rate,
            start_tokens=self.start(self._earlier),
        )
        number, _, segment = self._known or (-1, 0, None)
        return self.drafted(chunk, segment if number == stretch.number else None)

    def drafted(self, chunk: Chunk, segment: Segment | None = None) -> Chunk:
        """A chunk with the text of a segment as its draft, where drafts are of use."""
        if not self._drafts:
            return chunk
        return chunk._replace(draft=_said(segment) if segment else ())

    def _heard(self, item: Waiting, segment: Segment) -> None:
        """A hypothesis came."""
        self._asked = None
        if self._latest is None or segment.looped or not segment.complete:
            return
        number = self._latest[0]
        if number < self._forgotten and all(each.number != number for each in self._closed):
            return
        samples = len(item.chunk.audio)
        if self._known is None or self._known[0] != number:
            self._agreement = Agreement(self._guard)
        self._known = number, samples, segment
        heard = item.chunk.start + samples / self._rate
        self._agreement.add(segment.words, heard)
        found = self._agreement
        self._caption((number, item.chunk.start), found.committed, found.open, heard)

    def _settle_next(self, stretch: Stretch) -> None:
        """Asks for the text that stays of a stretch; it may be there already."""
        self._settling, self._settled = stretch, []
        self.add(self._chunk(stretch))
        number, samples, segment = self._known or (-1, 0, None)
        if segment is not None and (number, samples) == (stretch.number, len(stretch.audio)):
            self._settle_with(self.waiting.pop(), segment)
            self._offer()

    def _settle(self, segment: Segment) -> None:
        for part in segment.by_phrase():
            self.segments.append(part)
            self._settled.append(part)

    def _settle_stretch(self) -> None:
        """Tells the text of a stretch once all of it is decoded."""
        stretch, segments = self._settling, tuple(self._settled)
        if stretch is None or self.outstanding:
            return
        self._settling = None
        text = " ".join(segment.text for segment in segments if segment.words)
        earlier = f"{self._earlier} {text}".strip()[-_REMEMBERED:]
        self._earlier = earlier if is_sane(segments) else ""
        words = tuple(word for segment in segments for word in segment.words)
        heard = stretch.start + len(stretch.audio) / self._rate
        self._caption((stretch.number, stretch.start), words, (), heard, segments)

    def _caption(
        self,
        stretch: tuple[int, float],
        committed: tuple[Word, ...],
        open_: tuple[Word, ...],
        heard: float,
        segments: tuple[Segment, ...] | None = None,
    ) -> None:
        final = segments is not None
        counts = self.calls, self.drafter_calls, self.tokens
        self._tell(Caption(*stretch, committed, open_, final, heard, *counts, segments or ()))


def live_fields(
    model: Transcriber,
    strategy: str = "auto",
    language: str = "",
    task: str = "transcribe",
    prompt: str = "",
    tell_earlier: bool = True,
) -> dict[str, Any]:
    """What a session of a model is made of, beside what it tells its events.

    Args:
        model: what decodes it.
        strategy: name of one.
        language, task, prompt: as `Transcriber.transcribe` takes them.
        tell_earlier: whether a Whisper is told what was said before.

    Raises:
        LanguageError: the model has no such language or task, or takes no prompt.
    """
    alone = model.start_tokens(language, task, prompt)
    tells = tell_earlier and model.runner.model.vocabulary.whisper is not None

    def start(earlier: str) -> tuple[int, ...]:
        if not tells or not earlier:
            return alone
        return model.start_tokens(language, task, prompt, earlier)

    return {
        "start": start,
        "strategy": strategy,
        "drafts": registry.get(strategy).drafts_text,
        "calibrated": model.calibration is not None,
        "sample_rate": model.sample_rate,
    }


def live_cutter(model: Transcriber, pause: float = PAUSE) -> LiveCutter:
    """A cutter for such a session; `pause`: s that end a stretch."""
    return LiveCutter(model.sample_rate, min(LONGEST, model.longest), pause=pause)


def live_chunks(model: Transcriber, session: LiveSession) -> Iterator[Chunk]:
    """A chunk of each kind that a session has decoded: one for each program."""
    most = min(LONGEST, model.longest) * model.sample_rate
    count = sum(length < most for length in model.lengths) + 1
    told = EARLIER * "so it goes "  # more than enough
    for start in dict.fromkeys((session.start(""), session.start(told))):
        for samples in model.lengths[:count]:
            audio = np.zeros(samples, np.int16)
            yield session.drafted(Chunk(0.0, audio, 0.0, start_tokens=start))


def is_sane(segments: Sequence[Segment]) -> bool:
    """Whether a text may be told to what decodes the next.

    A text that has no end, repeats itself or is unlikely would go on in the next
    (the rules of Whisper's transcribe.py, and `transcription.repetition`).
    """
    tokens = [token for segment in segments for token in segment.tokens if token.word >= 0]
    if any(segment.looped or not segment.complete for segment in segments):
        return False
    text = " ".join(segment.text for segment in segments)
    if compression(text) > MAX_COMPRESSION or find_repetition([token.id for token in tokens]):
        return False
    logs = [math.log(max(token.confidence, 1e-30)) for token in tokens]
    return not logs or float(np.mean(logs)) > UNLIKELY


def _said(segment: Segment) -> tuple[int, ...]:
    return tuple(token.id for token in segment.tokens if token.word >= 0)
