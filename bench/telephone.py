"""The band of a telephone line."""

from __future__ import annotations

import numpy as np

from mtp_jax.data.corpus import SAMPLE_RATE

BAND = (300, 3400)  # Hz, ITU-T G.712


def telephone(wave: np.ndarray) -> np.ndarray:
    """float32[T], of float32[T] at 16 kHz what a telephone line lets through."""
    spectrum = np.fft.rfft(wave)
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    kept = (frequency >= BAND[0]) & (frequency <= BAND[1])
    return np.fft.irfft(np.where(kept, spectrum, 0), len(wave)).astype(np.float32)
