"""Cuts speech into stretches while it is heard, window by window of the voice detector.

A stretch begins `MARGIN` before speech and ends `MARGIN` behind it, once a pause of `PAUSE` has
followed. Where none comes within the longest stretch it is cut at the pause that is longest and
latest, as `segmentation` does, or where nobody pauses at the quietest place of its second half;
stretches never overlap, so that each is settled by itself.

Each decision is made at the end of a window and looks at what was heard by then: stretches do not
depend on the pieces in which the audio comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtp_jax.audio.segmentation import (
    FAINT,
    MARGIN,
    PAUSE,
    SHORT_PAUSE,
    UNVOICED,
    VOICED,
    quietest,
)
from mtp_jax.audio.vad import WINDOW_SECONDS, VoiceActivity

_SHORT = 1.0  # s; the detector may not have made up its mind about less


class Stretch(NamedTuple):
    """Speech between two pauses.

    Attributes:
        number: from 0, in order.
        start: s from the first sample that was heard.
        audio: int16[T].
    """

    number: int
    start: float
    audio: np.ndarray


class LiveSegmenter:
    """Stretches of what is heard; use as a context manager, which lends it a detector.

    Args:
        sample_rate: Hz.
        longest: s of a stretch, at most.
        detector: of voice activity, given the sample rate.
        pause: s that end a stretch; infinite for those that `finish` alone ends, or their length.
    """

    def __init__(
        self,
        sample_rate: int,
        longest: float,
        detector: Callable[[int], VoiceActivity] = VoiceActivity,
        pause: float = PAUSE,
    ) -> None:
        self.rate = sample_rate
        self._voice = detector(sample_rate)
        self._size = round(WINDOW_SECONDS * sample_rate)  # samples of a window
        self._pause = pause * sample_rate
        self._margin, self._short_pause = (
            round(seconds * sample_rate) for seconds in (MARGIN, SHORT_PAUSE)
        )
        self._longest = int(longest * sample_rate) // self._size * self._size
        self._parts: list[np.ndarray] = []  # what was heard and is not yet cut, whole windows
        self._tail = np.zeros(0, np.int16)  # behind them, less than a window
        # Places are counted in samples from the first that was heard.
        self._base = 0  # of the first of `_parts`
        self._end = 0  # behind the last of them
        self._resume = 0  # where the next stretch may begin
        self._begun: int | None = None  # where the open stretch does
        self._runs: list[list[int]] = []  # of speech in it: begin and end
        self._voiced = False
        self._since, self._most_voiced = 0, 0.0  # since the last `finish`
        self._number = 0

    def __enter__(self) -> LiveSegmenter:
        self._voice.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._voice.__exit__(*raised)

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return (self._end + len(self._tail)) / self.rate

    def feed(self, samples: np.ndarray) -> list[Stretch]:
        """Stretches that int16[T] `samples`, which follow the last, bring to their end."""
        heard = np.concatenate([self._tail, samples])
        whole = len(heard) // self._size * self._size
        closed: list[Stretch] = []
        for at in range(0, whole, self._size):
            closed += self._window(heard[at : at + self._size])
        self._tail = heard[whole:].copy()
        return closed

    def open(self) -> Stretch | None:
        """What was heard of the stretch that has not ended; None between two of them."""
        if self._begun is None:
            return None
        return self._stretch(self._begun, min(self._runs[-1][1] + self._margin, self._end))

    def finish(self) -> list[Stretch]:
        """Ends what is open: there is no more, or what follows does not belong to it."""
        self._parts.append(self._tail)
        self._end += len(self._tail)
        self._tail = np.zeros(0, np.int16)
        closed = []
        if self._begun is None and self._is_short() and self._most_voiced >= FAINT:
            closed = [self._close(self._resume, self._end)]
        elif self._begun is not None:
            ends = self._end if self._voiced else self._runs[-1][1] + self._margin
            closed = [self._close(self._begun, min(ends, self._end))]
        self._resume = self._since = self._end
        self._voiced, self._most_voiced = False, 0.0
        self._forget(self._end)
        return closed

    def clear(self) -> None:
        """Forgets what was heard and is not cut."""
        self._number += self._begun is not None
        self._begun, self._runs, self._most_voiced = None, [], 0.0
        self.finish()

    def _is_short(self) -> bool:
        return self._end - self._since < _SHORT * self.rate

    def _window(self, window: np.ndarray) -> list[Stretch]:
        """Decides what a window changes."""
        begin = self._end
        self._parts.append(window)
        self._end += len(window)
        for probability in self._voice.feed(window).tolist():
            self._voiced = probability >= (UNVOICED if self._voiced else VOICED)
            self._most_voiced = max(self._most_voiced, probability)
        if self._voiced:
            if self._begun is None:
                self._begun = max(self._resume, begin - self._margin)
                self._runs = []
            if self._runs and self._runs[-1][1] == begin:
                self._runs[-1][1] = self._end
            else:
                self._runs.append([begin, self._end])
        if self._begun is None:
            if not self._is_short():
                self._forget(self._end - self._margin - self._size)
            return []
        spoken = self._runs[-1][1]
        if self._end - spoken >= self._pause:
            return [self._close(self._begun, spoken + self._margin)]
        if self._end - self._begun >= self._longest:
            return [self._cut(self._begun)]
        return []

    def _cut(self, begun: int) -> Stretch:
        """Cuts a stretch that is as long as may be; what is behind goes on."""
        runs = self._runs
        following = [begin for begin, _ in runs[1:]] + [self._end]
        best, weight = None, 0
        for (_, end), behind in zip(runs, following, strict=True):
            pause = behind - end
            if pause >= self._short_pause and pause * (end - begun) > weight:
                best, weight = end + min(self._margin, pause // 2), pause * (end - begun)
        if best is None:
            half, last = self._longest // 2, self._longest
            best = begun + quietest(self._audio(begun, self._end), half, last, self.rate // 10)
        rest = [[max(begin, best), end] for begin, end in runs if end > best]
        closed = self._close(begun, best)
        if rest:
            self._begun = max(best, rest[0][0] - self._margin)
            self._runs = rest
        return closed

    def _close(self, start: int, stop: int) -> Stretch:
        closed = self._stretch(start, stop)
        self._number += 1
        self._begun, self._runs, self._resume = None, [], stop
        self._forget(stop)
        return closed

    def _stretch(self, start: int, stop: int) -> Stretch:
        return Stretch(self._number, start / self.rate, self._audio(start, stop))

    def _audio(self, start: int, stop: int) -> np.ndarray:
        whole = np.concatenate(self._parts)
        self._parts = [whole]
        return whole[start - self._base : stop - self._base].copy()

    def _forget(self, until: int) -> None:
        """Drops what lies before a place."""
        if until <= self._base:
            return
        self._parts = [self._audio(until, self._end)]
        self._base = until
