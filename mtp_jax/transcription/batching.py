"""Which chunks are decoded together, and what of the result goes to each recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mtp_jax.audio.segmentation import halves
from mtp_jax.transcription.recordings import Recording, Waiting
from mtp_jax.transcription.results import Segment

T = TypeVar("T")


def choose(waiting: Sequence[T], key: Callable[[T], float], sizes: Sequence[int]) -> list[T]:
    """The batch of the chunk whose turn it is: it, and its neighbours by a key such as length.

    Sorted by the key, what waits falls into batches of like lengths, so that little is padded. A
    batch is at least half full: rows of padding cost time, and a size that is not needed costs a
    compilation.

    >>> choose([3.0, 9.0, 2.0, 8.0, 1.0, 7.0], lambda seconds: seconds, sizes=(1, 4))
    [1.0, 2.0, 3.0, 7.0]

    Args:
        waiting: in the order of their turns, which also decides where the key is equal.
        key: what is sorted by; the batches begin with the least.
        sizes: to which batches are padded, 1 among them.

    Returns:
        The batch, in the order of the key; it holds `waiting[0]`.
    """
    order = sorted(range(len(waiting)), key=lambda i: key(waiting[i]))
    while True:
        size = max(size for size in sizes if size <= 2 * len(order))
        if len(order) <= size:
            return [waiting[i] for i in order]
        start = order.index(0) // size * size
        order = order[start : start + size]


def hand_out(
    batch: Sequence[tuple[Recording, Waiting]],
    segments: Sequence[Segment],
    seconds: float,
    sample_rate: int,
    longest: float,
) -> None:
    """Gives each recording its segments of a batch, its calls, and its share of the time.

    A chunk whose text has no end is halved, as less audio has less text, and waits again.

    Args:
        batch: what was decoded; recordings that were given up meanwhile get nothing.
        segments: one for each chunk.
        seconds: of wall clock that the batch took; shared by length.
        sample_rate: Hz of the chunks.
        longest: s of the longest chunk.
    """
    samples = sum(len(item.chunk.audio) for _, item in batch)
    for (recording, item), segment in zip(batch, segments, strict=True):
        if recording.over:
            continue
        recording.decode_seconds += seconds * len(item.chunk.audio) / max(samples, 1)
        recording.calls += segment.decoder_calls
        recording.drafter_calls += segment.drafter_calls
        parts = [] if segment.complete else halves(item.chunk, sample_rate, longest)
        if parts:
            recording.split(item, parts)
        else:
            recording.found(item, segment)
