"""Repetition loops: a decoder that says the same few tokens again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

COPIES = 4  # said so often in a row, tokens are under suspicion
LONGEST = 24  # tokens of one copy
_MOST_COPIES = 12  # that are tried, beside all of them


class Repetition(NamedTuple):
    """A run of tokens that repeat themselves.

    Attributes:
        start, stop: the run is ``tokens[start:stop]``; its last copy may be incomplete.
        period: tokens of a copy.
    """

    start: int
    stop: int
    period: int


def find_repetition(tokens: Sequence[int]) -> Repetition | None:
    """The first run of at least `COPIES` equal copies of at most `LONGEST` tokens, if any.

    Of several with the same start, the one with the shortest copies.
    """
    count, best = len(tokens), None
    for period in range(1, min(LONGEST, count // COPIES) + 1):
        start = 0
        for i in range(period, count + 1):
            if i < count and tokens[i] == tokens[i - period]:
                continue
            if i - start >= COPIES * period:
                found = Repetition(start, i, period)
                best = min(best or found, found, key=lambda loop: (loop.start, loop.period))
                break
            start = i - period + 1
    return best


def trim_repetitions(
    tokens: Sequence[int],
    likelihood: Callable[[list[int]], float | None],
    ended: bool = True,
) -> tuple[list[int], bool]:
    """`tokens` with each loop cut to as many copies as were said.

    People do say things four times over ("no no no no"). So the encoder decides: of the run as it
    is, and cut to 1, 2, ... copies, the text stays that its CTC output finds likeliest, and of
    equally likely ones the shorter. Where no CTC tells, a run is a loop, of which one copy stays,
    if the text never ended or has little beside it.

    Args:
        tokens: without EOS.
        likelihood: log-probability of a text, given as its tokens; None where it is not known.
        ended: whether the text came to EOS.

    Returns:
        Places of the tokens that stay, and whether any were cut.
    """
    kept, done = list(range(len(tokens))), 0
    while loop := find_repetition([tokens[i] for i in kept[done:]]):
        start, stop = done + loop.start, done + loop.stop
        copies = list(range(start + loop.period, stop, loop.period))
        copies = [*copies[:_MOST_COPIES], stop]
        options = [kept[:end] + kept[stop:] for end in copies]
        scores = [likelihood([tokens[i] for i in option]) for option in options]
        known = [score for score in scores if score is not None]
        if known:
            best = scores.index(max(known))
        else:
            best = 0 if not ended or 2 * (stop - start) > len(tokens) else len(copies) - 1
        kept, done = options[best], copies[best]
    return kept, len(kept) < len(tokens)
