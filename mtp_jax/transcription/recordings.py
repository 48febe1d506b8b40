"""A recording under way: what of it was decoded, until all of it is."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from mtp_jax.audio.reading import AudioError
from mtp_jax.transcription.results import Segment
from mtp_jax.transcription.segmentation import Chunk
from mtp_jax.transcription.stitching import stitch

Key = TypeVar("Key")


@dataclasses.dataclass(eq=False)
class Recording(Generic[Key]):
    """One recording.

    Attributes:
        key: whose it is.
        seconds: read so far; `told`: of these, those that progress was told of.
        outstanding: pieces that were cut and are not decoded; `read`: there will be no more.
        error: why it was given up.
        warnings: what of it could not be read.
        calls: decoder calls; `decode_seconds`: wall clock.
    """

    key: Key
    seconds: float = 0.0
    told: float = 0.0
    outstanding: int = 0
    read: bool = False
    error: AudioError | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    calls: int = 0
    decode_seconds: float = 0.0
    _places: int = 0
    _found: dict[tuple[int, ...], tuple[Segment, bool]] = dataclasses.field(default_factory=dict)

    def next_place(self) -> int:
        """Of a piece in the order of the recording."""
        self._places += 1
        return self._places

    def add(self, place: tuple[int, ...], segment: Segment, piece: Chunk) -> None:
        """Takes in what a piece became; parts of a piece have its place and their own behind it."""
        self._found[place] = segment, piece.overlaps

    def joined(self) -> tuple[Segment, ...]:
        """All segments in order; words that two of them share are in one."""
        joined: list[Segment] = []
        for place in sorted(self._found):
            segment, overlaps = self._found[place]
            if joined and overlaps:
                joined[-1], segment = stitch(joined[-1], segment)
            joined.append(segment)
        return tuple(joined)
