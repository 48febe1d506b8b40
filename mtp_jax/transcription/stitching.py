"""Segments whose chunks overlap, stitched: each word of the stretch they share is taken once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtp_jax.transcription.results import Segment, Word

_APART = 0.5  # s by which two chunks may differ over when a word was said


def stitch(left: Segment, right: Segment) -> tuple[Segment, Segment]:
    """Two segments in order, without what they share.

    The left one ends at the seam, and the right one begins there: halfway between the last word
    that is taken from the left and the first that is taken from the right, as far as these lie in
    the overlap. Words that the two times differ about are cut at the seam too.

    Args:
        left, right: segments of chunks that may overlap, in the order of the recording.

    Returns:
        Both; unchanged where they do not overlap.
    """
    if right.start >= left.end:
        return left, right
    keep, drop = resolve_overlap(left.words, right.words, right.start, left.end)
    start, stop = right.start, min(left.end, right.end)
    left, right = left.kept(0, keep), right.kept(drop, len(right.words))
    last = left.words[-1].end if left.words else start
    first = right.words[0].start if right.words else stop
    seam = (min(max(last, start), stop) + min(max(first, start), stop)) / 2
    return _within(left, left.start, seam), _within(right, seam, right.end)


def _within(segment: Segment, start: float, end: float) -> Segment:
    words = tuple(
        word._replace(
            start=min(max(word.start, start), end),
            end=min(max(word.end, start), end),
        )
        for word in segment.words
    )
    return dataclasses.replace(segment, start=start, end=end, words=words)


def resolve_overlap(
    left: Sequence[Word], right: Sequence[Word], start: float, stop: float
) -> tuple[int, int]:
    """How many words of `left` to keep, and how many of `right` to drop.

    Where both heard the same word at the same time, the words of `left` up to it and those of
    `right` behind it are taken: of several such words, at the one nearest to the middle of the
    overlap, as neither chunk was cut there. Where they agree on none, the middle decides.

    Args:
        left, right: words of two chunks, timed alike.
        start, stop: the overlap, in s.
    """
    middle = (start + stop) / 2

    def centre(word: Word) -> float:
        return (word.start + word.end) / 2

    shared = [
        (abs(centre(a) + centre(b) - 2 * middle), i, j)
        for i, a in enumerate(left)
        if a.end > start - _APART
        for j, b in enumerate(right)
        if b.start < stop + _APART
        if a.text.casefold() == b.text.casefold() and abs(centre(a) - centre(b)) < _APART
    ]
    if shared:
        _, i, j = min(shared)
        return i + 1, j + 1
    return sum(centre(w) < middle for w in left), sum(centre(w) < middle for w in right)
