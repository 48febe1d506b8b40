"""Captions of what is said while it is said: a recording whose end is not there yet.

The stretch that is being spoken is decoded again and again as more of it comes; the last
hypothesis is the draft of the next, so that this takes a call or two where nothing changes. Once a
pause ends it, the stretch is decoded as a whole (unless the last hypothesis was of all of it
already). So what stays is the text of transcribing the same stretches at once, whatever the
hypotheses were.

A Whisper is conditioned on the text of the stretches before, if that is fit for it (`is_sane`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from mtp_jax.audio.live_segmentation import Stretch
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.audio.vad import WINDOW_SECONDS
from mtp_jax.transcription.agreement import GUARD, Agreement
from mtp_jax.transcription.live_events import Caption, Ended, LiveEvent, Started
from mtp_jax.transcription.previous_text import is_sane
from mtp_jax.transcription.recordings import Place, Recording, Waiting
from mtp_jax.transcription.results import Segment, Word

STEP = 0.5  # s of new audio that a hypothesis waits for
_HYPOTHESIS: Place = ()  # of no chunk
_REMEMBERED = 1000  # characters of the previous text; its last tokens are what counts


class LiveSession(Recording):
    """State of a recording that is being made; at most one hypothesis of it waits or is decoded.

    As of every `Recording`, who uses it from several threads holds a lock around each method.

    Args:
        start: gives the tokens that a text begins with, of the previous text (may be empty).
        strategy: name of what decodes it.
        drafts: whether hypotheses are drafts of the next.
        calibrated: whether confidences are.
        emit: is given every event; must not block.
        sample_rate: Hz.
        step: s of new audio that a hypothesis waits for.
        guard: s of audio that must have come behind a word before it is committed.

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
        self._notify: Callable[[LiveEvent], None] = emit
        self.start, self._drafts, self._rate = start, drafts, sample_rate
        self._step, self._guard = step, guard
        self.parted = True
        self.tokens = 0
        self._stretch: Stretch | None = None  # that is open
        self._closed: deque[Stretch] = deque()  # to be decoded
        self._settling: Stretch | None = None  # that is being decoded
        self._settled: list[Segment] = []  # of it
        self._announced = 0  # stretches whose beginning was
        self._forgotten = 0  # those before it that are not over were forgotten
        self._asked: Waiting | None = None  # the hypothesis that waits or is being decoded
        self._latest: tuple[int, int] | None = None  # number and samples of the last one asked for
        self._known: tuple[int, int, Segment] | None = None  # of the last hypothesis
        self._agreement = Agreement(guard)
        self._previous = ""  # text to condition the next on
        self._ending = False

    @property
    def behind(self) -> int:
        """Stretches that are over and not settled."""
        return len(self._closed) + (self._settling is not None)

    def update(self, closed: Sequence[Stretch], stretch: Stretch | None, seconds: float) -> None:
        """Takes what the segmenter made of new audio.

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
            self._notify(Ended(each.number, each.start + len(each.audio) / self._rate))
            self._closed.append(each)
        if stretch is not None:
            self._begin(stretch)
        self._stretch = stretch
        self._offer()

    def clear(self, seconds: float) -> None:
        """Forgets the stretch that is open: its segmenter did."""
        if self._asked is not None and self._asked in self.waiting:
            self._drop_hypothesis()
        self._forgotten = self._announced
        self.update([], None, seconds)

    def all_read(self) -> None:
        """There is no more audio; what has come is to be closed before."""
        self._ending = True
        self._offer()

    def found(self, item: Waiting, segment: Segment) -> None:
        """`item` was decoded."""
        self.tokens += len(segment.tokens)
        if item.place == _HYPOTHESIS:
            self._take_hypothesis(item, segment)
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
        """A text that goes wrong behind previous text is decoded without."""
        alone = self.start("")
        if not wrong or item.chunk.start_tokens == alone:
            return False
        self._previous = ""
        super().split(item, [item.chunk._replace(start_tokens=alone)])
        return True

    def _begin(self, stretch: Stretch) -> None:
        if stretch.number >= self._announced:
            self._announced = stretch.number + 1
            self._notify(Started(stretch.number, stretch.start))

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
            start_tokens=self.start(self._previous),
        )
        number, _, segment = self._known or (-1, 0, None)
        return self.drafted(chunk, segment if number == stretch.number else None)

    def drafted(self, chunk: Chunk, segment: Segment | None = None) -> Chunk:
        """A chunk with the text of a segment as its draft, where drafts are of use."""
        if not self._drafts:
            return chunk
        return chunk._replace(draft=_token_ids(segment) if segment else ())

    def _take_hypothesis(self, item: Waiting, segment: Segment) -> None:
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
        audio_end = item.chunk.start + samples / self._rate
        self._agreement.add(segment.words, audio_end)
        found = self._agreement
        self._caption((number, item.chunk.start), found.committed, found.open, audio_end)

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
        previous = f"{self._previous} {text}".strip()[-_REMEMBERED:]
        self._previous = previous if is_sane(segments) else ""
        words = tuple(word for segment in segments for word in segment.words)
        audio_end = stretch.start + len(stretch.audio) / self._rate
        self._caption((stretch.number, stretch.start), words, (), audio_end, segments)

    def _caption(
        self,
        stretch: tuple[int, float],
        committed: tuple[Word, ...],
        open_: tuple[Word, ...],
        audio_end: float,
        segments: tuple[Segment, ...] | None = None,
    ) -> None:
        final = segments is not None
        counts = self.calls, self.drafter_calls, self.tokens
        self._notify(Caption(*stretch, committed, open_, final, audio_end, *counts, segments or ()))


def _token_ids(segment: Segment) -> tuple[int, ...]:
    return tuple(token.id for token in segment.tokens if token.word >= 0)
