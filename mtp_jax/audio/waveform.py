"""Samples to 16-bit mono: channels mixed, resampled, rounded; and a change of speed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import soxr

from mtp_jax.audio.errors import AudioError

FULL_SCALE = 32768  # int16 steps in the amplitude 1.0
BLOCK_SAMPLES = 1 << 20  # of all channels together
_LOUDEST = 16.0  # float samples beyond are on another scale
_CANCELLED = 0.01  # of the channels' energy; of unrelated channels the mean has 1 / channels
_RESTORED = 0.05
_FADE = 512  # samples from one way of mixing to the other


def waveform_blocks(
    blocks: Iterable[np.ndarray], name: str, rate: float, sample_rate: int
) -> Iterator[np.ndarray]:
    """The way of every recording from float samples to what the front end takes.

    Args:
        blocks: float32[T, channels], full scale at 1.0; closed at the end.
        name: of the recording, for messages.
        rate: of the blocks, in Hz.
        sample_rate: of the result, in Hz.

    Yields:
        int16[T], none of them empty.

    Raises:
        AudioError: a sample is not finite, or on another scale.
    """
    mix = _Mixer()
    with closed(blocks):
        if rate == sample_rate:
            for block in blocks:
                yield to_int16(mix(_checked(name, block)) * FULL_SCALE)
            return
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float64")
        for block in blocks:
            made = resampler.resample_chunk(mix(_checked(name, block)))
            if made.size:
                yield to_int16(made * FULL_SCALE)
        made = resampler.resample_chunk(np.zeros(0), last=True)
        if made.size:
            yield to_int16(made * FULL_SCALE)


@contextlib.contextmanager
def closed(blocks: Iterable[np.ndarray]) -> Iterator[None]:
    """Closes `blocks` at the end, if it is a generator: it may have a file open.

    Without it that waits for the garbage collector where something keeps the generator: a
    traceback, or a cycle of references.
    """
    try:
        yield
    finally:
        if isinstance(blocks, Generator):
            blocks.close()


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds to the nearest step and saturates; `samples` are in int16 steps."""
    steps: np.ndarray = np.clip(np.rint(samples), -FULL_SCALE, FULL_SCALE - 1)
    return steps.astype(np.int16)


def _checked(name: str, samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds samples that are not finite numbers: make it again")
    if max(samples.max(), -samples.min()) > _LOUDEST:
        raise AudioError(
            f"{name} holds float samples far beyond [-1, 1], on another scale: divide those of"
            " int16 by 32768"
        )
    return samples


class _Mixer:
    """Mixes the channels of consecutive blocks to one.

    That is their mean, unless they cancel one another, as when one side of a cable is wired the
    wrong way: then it is the loudest of them, until they cancel no longer. Energies are those of
    a block, less its mean. Between both ways lies a fade.
    """

    def __init__(self) -> None:
        self._channel: int | None = None  # None: the mean
        self._started = False

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """float64[T] of float32[T, channels]."""
        if samples.shape[1] == 1:
            return samples[:, 0].astype(np.float64)
        samples = np.asfortranarray(samples)  # a channel at a time: means of pairs are slow
        mean: np.ndarray = samples.mean(axis=1, dtype=np.float64)  # room until it saturates
        energies = samples.var(axis=0, dtype=np.float64)
        before, share = self._channel, mean.var() / max(energies.mean(), 1e-300)
        if before is None and share < _CANCELLED and energies.any():
            self._channel = int(energies.argmax())
        elif before is not None and share > _RESTORED:
            self._channel = None
        mixed = self._mixed(samples, mean, self._channel)
        if self._started and self._channel != before:
            fade = np.linspace(0, 1, min(_FADE, len(mean)))
            start = slice(len(fade))
            old = self._mixed(samples, mean, before)[start]
            mixed[start] = fade * mixed[start] + (1 - fade) * old
        self._started = True
        return mixed

    @staticmethod
    def _mixed(samples: np.ndarray, mean: np.ndarray, channel: int | None) -> np.ndarray:
        return mean.copy() if channel is None else samples[:, channel].astype(np.float64)


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Plays a waveform `factor` times as fast, pitch and all.

    This is the speed perturbation of Ko et al., "Audio augmentation for speech recognition"
    (Interspeech 2015): resampling, without a change of the nominal rate.

    Args:
        waveform: int16[T].
        factor: above 1 shortens, below 1 lengthens.

    Returns:
        int16[changed_length(T, factor)].

    Raises:
        ValueError: `factor` is not positive.
    """
    length = changed_length(len(waveform), factor)
    if factor == 1:
        return waveform
    if not length:
        return waveform[:0]
    # soxr rounds the length its own way, so that it can be one sample off.
    changed = soxr.resample(waveform.astype(np.float32), factor, 1.0)[:length]
    return to_int16(np.pad(changed, (0, length - len(changed))))


def changed_length(samples: int, factor: float) -> int:
    """Samples left of `samples` by `change_speed`: their number over `factor`, rounded.

    Raises:
        ValueError: `factor` is not positive.
    """
    if not factor > 0:
        raise ValueError(f"a speed of {factor} cannot be played: choose one above 0")
    return round(samples / factor)
