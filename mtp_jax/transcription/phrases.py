"""Phrases of a text, whose times a Whisper with timestamps writes itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Span = tuple[float, float]

_STEP = 0.02  # s from a time to the next


def phrase_spans(tokens: Sequence[int], first_time: int) -> list[Span]:
    """When the phrase of each token begins and ends, in s within its chunk.

    Args:
        tokens: of a text, times among them; one that was cut has no end of its last phrase, which
            then is infinite.
        first_time: the token of 0.00 s; those behind it are of the times that follow.
    """
    spans = [(0.0, float("inf"))] * len(tokens)
    times = [place for place, token in enumerate(tokens) if token >= first_time]
    for first, last in itertools.zip_longest(times[::2], times[1::2], fillvalue=len(tokens)):
        begin, end = (
            (tokens[place] - first_time) * _STEP if place < len(tokens) else float("inf")
            for place in (first, last)
        )
        spans[first:last] = [(begin, end)] * (last - first)
    return spans


def of_words(spans: Sequence[Span], word: Sequence[int], count: int) -> list[Span]:
    """The phrase of each of `count` words: that of its first token.

    Args:
        spans: of each token; `word`: of each token the place of its word. A word without tokens is
            of the phrase before it.
    """
    first: dict[int, Span] = {}
    for place, span in zip(word, spans, strict=True):
        first.setdefault(place, span)
    found = [spans[0]] if count else []
    for place in range(count):
        found.append(first.get(place, found[-1]))
    return found[1:]
