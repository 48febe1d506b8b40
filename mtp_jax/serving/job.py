"""One recording that the service was sent: who decodes it, and where its chunks come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.decoding import Strategy
from mtp_jax.transcription.recordings import Event, Recording


class Cancelled(Exception):
    """Nobody waits for the recording any more."""


class Job(Recording):
    """State of one request's recording. The engine holds its lock around every method.

    Args:
        chunks: of the recording; a generator.
        strategy: that decodes it.
        name: of the strategy.
        calibrated: whether confidences are.
        emit: told every event, from any thread; must not block.

    Attributes:
        parked: reading waits until chunks are decoded.
    """

    def __init__(
        self,
        chunks: Callable[[Job], Iterator[Chunk]],
        strategy: Strategy,
        name: str,
        calibrated: bool,
        emit: Callable[[Event], None],
    ) -> None:
        super().__init__(name, calibrated, emit)
        self.chunks = chunks(self)
        self.strategy, self.name = strategy, name
        self.parked = False
