"""The policy of whisper_streaming, to compare live captions with: see `bench.live`.

After Macháček, Dabre and Bojar, "Turning Whisper into a real-time transcription system" (2023) and
https://github.com/ufal/whisper_streaming, `OnlineASRProcessor` with its defaults: every `interval`
seconds of new audio the buffer is transcribed anew, without a voice detector and without drafts,
behind the last 200 characters of the text that has left the buffer. Words that two transcripts in a
row begin with are committed, and stay. A buffer of more than 15 s is cut at the end of its last
sentence but one that is committed whole; where there is none, and the buffer is nearly full, behind
its last committed word. (Its "segments" are taken to be sentences, as this model writes no times.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.transcription.recordings import Waiting
from mtp_jax.transcription.results import Segment, Word

_TRIM = 15.0  # s
_PROMPT = 200  # characters
_REPEATED = 5  # words that may be said again where the buffer was cut
_ENDS = (".", "?", "!")


class LocalAgreement:
    """A stream under that policy, in the place of a `LiveSession`.

    Args:
        start: gives the tokens that a text begins with, of the previous text.
        show: is given all committed words, and those that are not.
        rate: Hz.
        interval: s of new audio that a transcript waits for.
        longest: s that the model takes at once.
    """

    def __init__(
        self,
        start: Callable[[str], tuple[int, ...]],
        show: Callable[[list[Word], list[Word]], None],
        rate: int,
        interval: float,
        longest: float,
    ) -> None:
        self._start, self._show, self._rate = start, show, rate
        self._interval, self._longest = interval, longest
        self.waiting: deque[Waiting] = deque()
        self.over = False
        self.calls = self.drafter_calls = 0
        self.decode_seconds = 0.0
        self.committed: list[Word] = []
        self._before: list[Word] = []  # what the last transcript had behind the committed words
        self._audio = np.zeros(0, np.int16)
        self._offset = 0.0  # s at which it begins
        self._seen = 0  # samples of it that the last transcript was of
        self._ending = self._decoding = False

    def feed(self, samples: np.ndarray) -> None:
        """Takes what follows."""
        self._audio = np.concatenate([self._audio, samples])
        self._offer()

    def end(self) -> None:
        """There is no more."""
        self._ending = True
        self._offer()

    def _offer(self) -> None:
        if self._decoding or self.over:
            return
        new = len(self._audio) - self._seen
        if self._ending and not new:
            self.over = True
            self.committed += self._before
            self._show(self.committed, [])
        if not self.over and (new >= self._interval * self._rate or self._ending):
            audio = self._audio[-int(self._longest * self._rate) :]
            left = [word for word in self.committed if word.end <= self._offset]
            text = " ".join(word.text for word in left)[-_PROMPT:].partition(" ")[2]
            chunk = Chunk(self._offset, audio, 0.0, start_tokens=self._start(text))
            self._seen, self._decoding = len(self._audio), True
            self.waiting.append(Waiting((), chunk))

    def split(self, item: Waiting, parts: list[Chunk]) -> None:
        """A text without an end is taken as it is."""

    def found(self, item: Waiting, segment: Segment) -> None:
        """A transcript came."""
        self._decoding = False
        fresh = self._fresh(segment.words)
        count = 0
        for before, word in zip(self._before, fresh, strict=False):
            if before.text != word.text:
                break
            count += 1
        self.committed += fresh[:count]
        self._before = fresh[count:]
        self._show(self.committed, self._before)
        if len(self._audio) > _TRIM * self._rate:
            self._trim()
        self._offer()

    def _fresh(self, words: Sequence[Word]) -> list[Word]:
        """Words behind the committed ones, by time and by what was said last."""
        last = self.committed[-1].end if self.committed else 0.0
        fresh = [word for word in words if word.start > last - 0.1]
        if fresh and abs(fresh[0].start - last) < 1 and self.committed:
            for count in range(1, min(_REPEATED, len(fresh), len(self.committed)) + 1):
                said = [word.text for word in self.committed[-count:]]
                if said == [word.text for word in fresh[:count]]:
                    return fresh[count:]
        return fresh

    def _trim(self) -> None:
        own = [word for word in self.committed if word.end > self._offset]
        ends = [word.end for word in own if word.text.endswith(_ENDS)]
        if len(ends) > 1:
            self._cut(ends[-2])
        elif own and len(self._audio) > (self._longest - 5) * self._rate:
            self._cut(own[-1].end)

    def _cut(self, at: float) -> None:
        samples = round((at - self._offset) * self._rate)
        self._audio = self._audio[samples:]
        self._offset += samples / self._rate
        self._seen = max(self._seen - samples, 0)
