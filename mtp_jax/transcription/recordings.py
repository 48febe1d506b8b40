"""A recording under way: chunks in, segments out in their order, and its transcript at the end."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import deque
from collections.abc import Callable

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.transcription.results import Segment, Transcript
from mtp_jax.transcription.stitching import stitch

Place = tuple[int, ...]  # of a chunk; parts of it have its own and theirs behind
Event = Segment | Transcript | Exception  # segments in order, then one of the others


@dataclasses.dataclass(frozen=True, eq=False)
class Waiting:
    """A chunk to decode.

    Attributes:
        place: in the order of the recording.
        since: when it began to wait, by `time.monotonic`.
    """

    place: Place
    chunk: Chunk
    since: float = dataclasses.field(default_factory=time.monotonic)


class Recording:
    """State of one recording, from its first chunk to its transcript.

    A segment is settled once nothing can change it: every chunk before it is decoded, and the one
    behind it, if it overlaps, as well. Who uses it from several threads holds a lock around each
    method.

    Args:
        strategy: name of what decodes it.
        calibrated: whether confidences are.
        emit: told each segment as it is settled, and at last the outcome; must not block.

    Attributes:
        waiting: chunks to decode, in order.
        segments: that are settled.
        seconds: of audio read; `covered`: of these, those that are done with.
        calls: of the decoder; `drafter_calls`: of that of a model that drafted for it.
        decode_seconds: its share of the wall clock of its batches.
        warnings: what of the recording could not be read.
        outcome: the transcript, or why there is none; None while it is under way.
        parted: the next chunk, if there is one, does not overlap the last.
    """

    def __init__(
        self,
        strategy: str = "",
        calibrated: bool = False,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.waiting: deque[Waiting] = deque()
        self.segments: list[Segment] = []
        self.seconds = self.covered = self.decode_seconds = 0.0
        self.calls = self.drafter_calls = 0
        self.warnings: list[str] = []
        self.outcome: Transcript | Exception | None = None
        self.parted = False
        self._strategy, self._calibrated, self._emit = strategy, calibrated, emit
        self._all_read = False
        self._count = 0  # of the chunks read
        self._open: dict[Place, Chunk] = {}
        self._found: list[tuple[Place, Segment, bool]] = []  # a heap; whether it overlaps
        self._last: Segment | None = None  # which the next may overlap

    @property
    def over(self) -> bool:
        """Whether it has its outcome."""
        return self.outcome is not None

    @property
    def outstanding(self) -> int:
        """Chunks that were cut and are not decoded."""
        return len(self._open)

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk of the recording."""
        self._count += 1
        place = (self._count,)
        self._open[place] = chunk
        self.waiting.append(Waiting(place, chunk))
        self._advance()

    def all_read(self) -> None:
        """There are no more chunks."""
        self._all_read = True
        self._advance()

    def split(self, item: Waiting, parts: list[Chunk]) -> None:
        """`item` is to be decoded in parts instead."""
        del self._open[item.place]
        for i, part in reversed(list(enumerate(parts))):
            place = (*item.place, i)
            self._open[place] = part
            self.waiting.appendleft(Waiting(place, part, item.since))

    def found(self, item: Waiting, segment: Segment) -> None:
        """`item` was decoded."""
        del self._open[item.place]
        self.covered += item.chunk.covered
        heapq.heappush(self._found, (item.place, segment, item.chunk.overlaps))
        self._advance()

    def fail(self, error: Exception) -> None:
        """Gives the recording up, unless it is over."""
        self.waiting.clear()
        self._open.clear()
        if not self.over:
            self._end(error)

    def _advance(self) -> None:
        """Settles the segments that nothing can change any more, and makes the transcript."""
        if self.over:
            return
        first = min(self._open, default=None)
        while self._found and (first is None or self._found[0][0] < first):
            _, segment, overlaps = heapq.heappop(self._found)
            if self._last is not None:
                left = self._last
                if overlaps:
                    left, segment = stitch(left, segment)
                self._settle(left)
            self._last = segment
        ends = self._all_read or self.parted
        overlapped = self._open[first].overlaps if first is not None else not ends
        if self._last is not None and not overlapped:
            self._settle(self._last)
            self._last = None
        if self._all_read and not self._open:
            self._end(self._transcript())

    def _settle(self, segment: Segment) -> None:
        for part in segment.by_phrase():
            self.segments.append(part)
            self._emit(part)

    def _end(self, outcome: Transcript | Exception) -> None:
        self.outcome, self.covered = outcome, self.seconds
        self._emit(outcome)

    def _transcript(self) -> Transcript:
        return Transcript(
            segments=tuple(self.segments),
            audio_seconds=self.seconds,
            decode_seconds=self.decode_seconds,
            decoder_calls=self.calls,
            strategy=self._strategy,
            calibrated=self._calibrated,
            warnings=tuple(self.warnings),
            drafter_calls=self.drafter_calls,
        )
