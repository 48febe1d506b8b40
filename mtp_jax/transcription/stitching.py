"""Two pieces that overlap, joined: each word of the stretch they share is taken once."""

from __future__ import annotations

from collections.abc import Sequence

from mtp_jax.transcription.results import Word

_APART = 0.5  # s by which two pieces may differ over when a word was said


def resolve_overlap(
    left: Sequence[Word], right: Sequence[Word], start: float, stop: float
) -> tuple[int, int]:
    """How many words of `left` to keep, and how many of `right` to drop.

    Where both heard the same word at the same time, the words of `left` up to it and those of
    `right` behind it are taken: of several such words, at the one nearest to the middle of the
    overlap, as neither piece was cut there. Where they agree on none, the middle decides.

    Args:
        left, right: words of two pieces, timed alike.
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
