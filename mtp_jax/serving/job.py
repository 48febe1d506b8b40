"""One recording that the service was sent, from its first piece to its transcript."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator

from mtp_jax.decoding import Strategy
from mtp_jax.transcription.results import Segment, Transcript
from mtp_jax.transcription.segmentation import Chunk
from mtp_jax.transcription.stitching import stitch

Place = tuple[int, ...]  # of a piece; parts of it have its own and theirs behind
Event = Segment | Transcript | Exception  # segments in order, then one of the others


class Cancelled(Exception):
    """Nobody waits for the recording any more."""


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A piece to decode.

    Attributes:
        place: in the order of the recording.
        since: when it began to wait, by `time.monotonic`.
    """

    place: Place
    piece: Chunk
    since: float = dataclasses.field(default_factory=time.monotonic)


class Job:
    """State of one recording. The engine holds its lock around every method.

    Args:
        pieces: of the recording; a generator.
        strategy: that decodes it.
        name: of the strategy.
        calibrated: whether confidences are.
        emit: told every event, from any thread; must not block.

    Attributes:
        waiting: pieces to decode.
        seconds: of audio read; `decode_seconds`: its share of the wall clock of its batches.
        parked: reading waits until pieces are decoded.
        warnings: what of the recording could not be read.
    """

    def __init__(
        self,
        pieces: Callable[[Job], Iterator[Chunk]],
        strategy: Strategy,
        name: str,
        calibrated: bool,
        emit: Callable[[Event], None],
    ) -> None:
        self.pieces = pieces(self)
        self.strategy, self.name, self.calibrated = strategy, name, calibrated
        self.waiting: deque[Waiting] = deque()
        self.seconds = self.decode_seconds = 0.0
        self.calls = 0
        self.warnings: list[str] = []
        self.parked = self.over = False
        self._emit = emit
        self._read = False
        self._count = 0
        self._open: dict[Place, Chunk] = {}
        self._found: list[tuple[Place, Segment, Chunk]] = []  # a heap
        self._last: Segment | None = None  # which the next may overlap
        self._settled: list[Segment] = []

    @property
    def outstanding(self) -> int:
        """Pieces that were cut and are not decoded."""
        return len(self._open)

    def add(self, piece: Chunk) -> None:
        """Takes the next piece of the recording."""
        self._count += 1
        place = (self._count,)
        self._open[place] = piece
        self.waiting.append(Waiting(place, piece))
        self._advance()

    def all_read(self) -> None:
        """There are no more pieces."""
        self._read = True
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
        heapq.heappush(self._found, (item.place, segment, item.piece))
        self._advance()

    def fail(self, error: Exception) -> None:
        """Gives the recording up."""
        self.waiting.clear()
        self._open.clear()
        if not self.over:
            self.over = True
            self._emit(error)

    def _advance(self) -> None:
        """Emits the segments that nothing can change any more, and the transcript."""
        if self.over:
            return
        first = min(self._open, default=None)
        while self._found and (first is None or self._found[0][0] < first):
            _, segment, piece = heapq.heappop(self._found)
            if self._last is not None:
                left = self._last
                if piece.overlaps:
                    left, segment = stitch(left, segment)
                self._settle(left)
            self._last = segment
        following = self._open[first].overlaps if first is not None else not self._read
        if self._last is not None and not following:
            self._settle(self._last)
            self._last = None
        if self._read and not self._open:
            self.over = True
            self._emit(
                Transcript(
                    segments=tuple(self._settled),
                    audio_seconds=self.seconds,
                    decode_seconds=self.decode_seconds,
                    decoder_calls=self.calls,
                    strategy=self.name,
                    calibrated=self.calibrated,
                    warnings=tuple(self.warnings),
                )
            )

    def _settle(self, segment: Segment) -> None:
        self._settled.append(segment)
        self._emit(segment)
