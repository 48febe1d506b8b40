"""A live session as the engine's scheduler sees it."""

from __future__ import annotations

from typing import Any

from mtp_jax.decoding import Strategy
from mtp_jax.transcription.live import LiveSession


class LiveJob(LiveSession):
    """State of one client's live captions. The engine holds its lock around every method.

    Args:
        decoder: the strategy that decodes it.
        strategy: its name; `fields`: the rest of a `LiveSession`.

    Attributes:
        strategy, name: as of `Job`; `parked`: no file of it is read.
    """

    parked = False

    def __init__(self, decoder: Strategy, strategy: str, **fields: Any) -> None:
        super().__init__(strategy=strategy, **fields)
        self.strategy, self.name = decoder, strategy
