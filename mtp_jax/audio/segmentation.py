"""Cuts a recording of any length into pieces that the model can take, reading it once.

A piece is at most `longest` seconds. A recording that fits is one piece, from `MARGIN` before its
first speech to `MARGIN` behind its last. Of a longer one, what is silent is left out, and speech is
cut

1. at every pause of `PAUSE` or more;
2. where none comes within `longest`, at the pause that is longest and latest in it (by the product
   of both);
3. where nobody pauses, at the quietest place of the last part, and the two pieces overlap by
   `overlap`, so that a word which is cut in one is whole in the other; `stitching` takes it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mtp_jax.audio.vad import WINDOW_SECONDS, VoiceActivity
from mtp_jax.audio.waveform import closed

PAUSE = 0.8  # s that always end a piece
SHORT_PAUSE = 0.1  # s that may end one
MARGIN = 0.2  # s kept before and after speech
VOICED = 0.5  # probability from which a window is speech; it stays so down to
UNVOICED = 0.35
_HEARD = 0.25  # of a recording's most voiced window: below, nobody speaks in it
FAINT = 0.1  # of one that is shorter than the detector needs to make up its mind


class Chunk(NamedTuple):
    """A part of a recording.

    Attributes:
        start: s from the beginning of the recording.
        audio: int16[T].
        covered: s of the recording that it is done with once this piece is.
        overlaps: it begins within the piece before.
        start_tokens: that its text begins with, in a Whisper
            (`mtp_jax.tokenizer.whisper_tokens`); none leaves them to the model.
        draft: tokens of a text that its own is likely to begin with, EOS apart: the decoder
            verifies them. None where nobody asks for such drafts.
    """

    start: float
    audio: np.ndarray
    covered: float
    overlaps: bool = False
    start_tokens: tuple[int, ...] = ()
    draft: tuple[int, ...] | None = None


def overlap(longest: float) -> float:
    """Seconds that two pieces share where a cut may be within a word: at most one."""
    return min(1.0, longest / 6)


def cut(
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    longest: float,
    detector: Callable[[int], VoiceActivity] = VoiceActivity,
    start_tokens: tuple[int, ...] = (),
) -> Iterator[Chunk]:
    """Pieces of a recording, in order; holds little more than one of them.

    Args:
        blocks: int16[T] each, the recording; closed at the end.
        sample_rate: Hz.
        longest: s.
        detector: of voice activity, given the sample rate.
        start_tokens: of every piece.
    """

    def begun(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        return (chunk._replace(start_tokens=start_tokens) for chunk in chunks)

    with closed(blocks), detector(sample_rate) as voice:
        cutter = _Cutter(sample_rate, longest)
        for block in blocks:
            # No block is so long that it would matter, whatever the caller has.
            for at in range(0, len(block), sample_rate * 10):
                part = block[at : at + sample_rate * 10]
                cutter.add(part, voice.feed(part))
                yield from begun(cutter.pieces())
        yield from begun(cutter.pieces(final=True))


def halves(piece: Chunk, sample_rate: int, longest: float) -> list[Chunk]:
    """A piece in two that overlap, parted at the quietest place of its middle third.

    Empty where it is too short to be parted.
    """
    seconds, shared = len(piece.audio) / sample_rate, overlap(longest) / 2
    if seconds < 6 * shared:
        return []
    third = len(piece.audio) // 3
    middle = quietest(piece.audio, third, 2 * third, sample_rate // 10) / sample_rate
    first = piece.audio[: round((middle + shared) * sample_rate)]
    begin = round((middle - shared) * sample_rate)
    draft = None if piece.draft is None else ()
    return [
        piece._replace(audio=first, covered=piece.covered / 2, draft=draft),
        Chunk(
            piece.start + begin / sample_rate,
            piece.audio[begin:],
            piece.covered / 2,
            overlaps=True,
            start_tokens=piece.start_tokens,
            draft=draft,
        ),
    ]


class _Cutter:
    """What was read and not yet cut."""

    def __init__(self, sample_rate: int, longest: float) -> None:
        self.rate, self.longest, self.overlap = sample_rate, longest, overlap(longest)
        self.dropped = 0  # windows
        self.audio = np.zeros(0, np.int16)  # behind these
        self.voiced = np.zeros(0, np.float32)  # of the windows behind these
        self.resume = 0.0  # s, where the last piece lets the next begin
        self.overlaps = False  # whether it must begin there

    def add(self, audio: np.ndarray, voiced: np.ndarray) -> None:
        self.audio = np.concatenate([self.audio, audio])
        self.voiced = np.concatenate([self.voiced, voiced])

    @property
    def base(self) -> float:
        """Where `audio` begins, in s."""
        return self._sample(self.dropped) / self.rate

    @property
    def end(self) -> float:
        return (self._sample(self.dropped) + len(self.audio)) / self.rate

    def _sample(self, window: int) -> int:
        return round(window * WINDOW_SECONDS * self.rate)

    def pieces(self, final: bool = False) -> Iterator[Chunk]:
        if final and not self.dropped and self.end <= self.longest:
            if len(self.audio) and self.voiced.max(initial=0.0) >= self._threshold():
                speech = self._speech() or [(0.0, self.end)]  # too faint to say where: all of it
                start, stop = speech[0][0] - MARGIN, speech[-1][1] + MARGIN
                yield self._piece(max(start, 0.0), min(stop, self.end), self.end)
            return
        while self.end - self.base > self.longest + PAUSE or final:
            found = self._next(final)
            if found is None:
                return
            start, stop, resume, overlaps = found
            yield self._piece(start, stop, resume)
            self._forget(resume)
            self.resume, self.overlaps = resume, overlaps

    def _threshold(self) -> float:
        # The detector needs some windows to make up its mind: a word alone is given the benefit.
        return _HEARD if self.end >= 1.0 else FAINT

    def _piece(self, start: float, stop: float, resume: float) -> Chunk:
        a, b = (round(t * self.rate) - self._sample(self.dropped) for t in (start, stop))
        return Chunk(start, self.audio[a:b].copy(), resume - self.resume, self.overlaps)

    def _forget(self, until: float) -> None:
        """Drops what lies before `until`, in whole windows."""
        windows = min(int(until / WINDOW_SECONDS + 1e-6) - self.dropped, len(self.voiced))
        if windows <= 0:
            return
        samples = self._sample(self.dropped + windows) - self._sample(self.dropped)
        self.audio, self.voiced = self.audio[samples:], self.voiced[windows:]
        self.dropped += windows

    def _next(self, final: bool) -> tuple[float, float, float, bool] | None:
        """Start and end of the next piece, where to go on, and whether the two overlap."""
        speech = self._speech()
        if not len(speech):
            keep = 0.0 if final else MARGIN + 2 * WINDOW_SECONDS
            self._forget(self.end - keep)
            self.overlaps = False
            return None
        first = speech[0][0]
        start = self.resume if self.overlaps else max(self.resume, first - MARGIN)
        if not final and self.end - start <= self.longest + PAUSE:
            if not self.overlaps:
                self._forget(start)
            return None
        limit = start + self.longest
        ends, starts = [e for _, e in speech], [s for s, _ in speech[1:]] + [np.inf]
        best, weight = None, 0.0
        for stop, following in zip(ends, starts, strict=True):
            if stop > limit:
                break
            pause = min(following, self.end + PAUSE if final else self.end) - stop
            if pause >= PAUSE or (final and following == np.inf):
                best = (stop, following)
                break
            if pause >= SHORT_PAUSE and pause * (stop - start) > weight:
                best, weight = (stop, following), pause * (stop - start)
        if best:
            stop, following = best
            half = min(MARGIN, (following - stop) / 2)
            stop = min(stop + half, limit, self.end)
            return start, stop, stop, False
        before = self._sample(self.dropped)
        low, high = (
            round(t * self.rate) - before
            for t in (start + self.longest / 2, limit - self.overlap / 2)
        )
        quiet = (before + quietest(self.audio, low, high, self.rate // 10)) / self.rate
        return start, min(quiet + self.overlap / 2, limit), quiet - self.overlap / 2, True

    def _speech(self) -> list[tuple[float, float]]:
        """Start and end, in s, of each run of windows in which somebody speaks."""
        runs: list[tuple[float, float]] = []
        begun = None
        for i, p in enumerate(self.voiced.tolist()):
            if begun is None and p >= VOICED:
                begun = i
            elif begun is not None and p < UNVOICED:
                runs.append((begun, i))
                begun = None
        if begun is not None:
            runs.append((begun, len(self.voiced)))
        d = self.dropped
        return [((d + a) * WINDOW_SECONDS, (d + b) * WINDOW_SECONDS) for a, b in runs]


def quietest(audio: np.ndarray, low: int, high: int, width: int) -> int:
    """The middle of the `width` samples of least energy between two places."""
    energy = np.square(audio[low:high].astype(np.int64))
    width = min(width, len(energy))
    total = np.cumsum(np.pad(energy, (1, 0)))
    return low + int(np.argmin(total[width:] - total[: len(total) - width])) + width // 2
