"""What of a text that grows is settled: local agreement of two hypotheses in a row.

A word is committed once two hypotheses in a row have it at the same place, behind the same words,
and enough was heard behind it (LocalAgreement-2: Liu et al., "Low-latency sequence-to-sequence
speech recognition and translation by partial hypothesis selection", Interspeech 2020; Macháček et
al., "Turning Whisper into a real-time transcription system", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

from mtp_jax.transcription.results import Word

GUARD = 0.3  # s that must have been heard behind a word: the last one may be half of another


class Agreement:
    """The words of one stretch, over the hypotheses of it.

    Args:
        guard: s that must have been heard behind a committed word.

    Attributes:
        committed: words that stay as they are, in order.
        open: those behind them in the last hypothesis.
    """

    def __init__(self, guard: float = GUARD) -> None:
        self._guard = guard
        self.committed: tuple[Word, ...] = ()
        self.open: tuple[Word, ...] = ()

    def add(self, words: Sequence[Word], audio_end: float) -> None:
        """Takes the next hypothesis.

        Args:
            words: all of it.
            audio_end: s of the recording at which its audio ends.
        """
        fresh = tuple(words[behind(self.committed, words) :])
        count = 0
        for before, word in zip(self.open, fresh, strict=False):
            if before.text != word.text or word.end > audio_end - self._guard:
                break
            count += 1
        self.committed += fresh[:count]
        self.open = fresh[count:]


def behind(known: Sequence[Word], words: Sequence[Word]) -> int:
    """How many of `words` say what `known` says: of the nearest prefix, by edit distance.

    Of several equally near ones, the one that is as long, or nearest to it.
    """
    count = len(known)
    if [word.text for word in words[:count]] == [word.text for word in known]:
        return count
    row = list(range(len(words) + 1))
    for i, word in enumerate(known, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(words, 1):
            replaced = diagonal + (word.text != other.text)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return min(range(len(row)), key=lambda j: (row[j], abs(j - count)))
