"""What happens in a live session, as its listeners are notified of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mtp_jax.transcription.recordings import Event
from mtp_jax.transcription.results import Segment, Word


@dataclasses.dataclass(frozen=True)
class Started:
    """Somebody begins to speak, or a stretch that was cut goes on.

    Attributes:
        number: of the stretch; `at`: s from the beginning at which it begins.
    """

    number: int
    at: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stretch is over, its text to come.

    Attributes:
        number: of the stretch; `at`: s from the beginning at which it ends.
    """

    number: int
    at: float


@dataclasses.dataclass(frozen=True)
class Caption:
    """What a stretch says, so far.

    Attributes:
        number: of the stretch; `start`: s from the beginning at which it begins.
        committed: words that stay while it is open; all of them once it is final.
        open: words behind them that may change.
        final: the stretch is settled.
        audio_end: s from the beginning at which its audio ends.
        calls: of the decoder for the recording so far, `drafter_calls`: of a model that drafts.
        tokens: that they gave, those of every hypothesis.
        segments: of a final caption.
    """

    number: int
    start: float
    committed: tuple[Word, ...]
    open: tuple[Word, ...]
    final: bool
    audio_end: float
    calls: int
    drafter_calls: int = 0
    tokens: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def text(self) -> str:
        """All words."""
        return joined([*self.committed, *self.open])


LiveEvent = Started | Ended | Caption | Event


def joined(words: Sequence[Word]) -> str:
    """Their text."""
    return " ".join(word.text for word in words)
