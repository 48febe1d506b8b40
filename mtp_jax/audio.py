"""Recordings to 16-bit mono waveforms. Imports no JAX, so that data workers stay light."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

_FULL_SCALE = 32768  # int16 steps in the amplitude that libsndfile calls 1.0
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX


class AudioError(ValueError):
    """A recording that cannot be used; the message says in one sentence which, why and what to do.

    Whoever reads many recordings can catch it, note the message and go on with the next.
    """


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
) -> np.ndarray:
    """Reads a recording, or a part of it, as mono at the sample rate wanted.

    Whatever libsndfile reads will do: WAV, FLAC, MP3, Ogg (Vorbis, Opus) and more, at any rate.
    Channels are averaged and the result is resampled by soxr ("HQ": flat to 0.91 of the Nyquist
    frequency). A 16-bit mono file that already has the rate wanted comes back bit for bit.

    An MP3 is as long as its Xing header says, or, without one, as libsndfile guesses; the part
    of a cut MP3 that can be decoded is returned.

    Args:
        path: of the file.
        sample_rate: of the result, in Hz.
        offset: where to start, in seconds.
        duration: how much to read, in seconds; None, or more than there is, reads to the end.

    Returns:
        int16[T], T at least 1.

    Raises:
        AudioError: the file is missing, not audio, damaged, empty or holds samples that are not
            finite, or nothing of it lies in the part asked for.
    """
    if offset < 0 or (duration is not None and duration <= 0):
        raise AudioError(
            f"{path} cannot be read from {offset} s for {duration} s: give an offset of 0 or more"
            " and a duration above 0"
        )
    with _opened(path) as file:
        start = round(offset * file.samplerate)
        if start >= file.frames:
            raise AudioError(
                f"{path} is {file.frames / file.samplerate:g} s long, so that nothing is left"
                f" after an offset of {offset:g} s: correct the offset"
            )
        count = -1 if duration is None else max(1, round(duration * file.samplerate))
        try:
            file.seek(start)
            samples = file.read(count, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, MemoryError):
            raise AudioError(_damaged(path)) from None
        file_rate = file.samplerate
    if not samples.size:
        raise AudioError(_damaged(path))
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers: make it again")
    mono = samples.mean(axis=1, dtype=np.float64)  # room for any float32 until it saturates
    if file_rate != sample_rate:
        mono = soxr.resample(mono, file_rate, sample_rate)
    if not mono.size:
        raise AudioError(f"{path} is shorter than one sample at {sample_rate} Hz: leave it out")
    return _to_int16(mono * _FULL_SCALE)


def audio_seconds(path: str | os.PathLike[str]) -> float:
    """Length of a recording in seconds by its header, without decoding it.

    Raises:
        AudioError: the file is missing, not audio or empty. Damage further in is found only by
            `read_audio`.
    """
    with _opened(path) as file:
        return float(file.frames / file.samplerate)


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
    return _to_int16(np.pad(changed, (0, length - len(changed))))


def changed_length(samples: int, factor: float) -> int:
    """Samples left of `samples` by `change_speed`: their number over `factor`, rounded.

    Raises:
        ValueError: `factor` is not positive.
    """
    if not factor > 0:
        raise ValueError(f"a speed of {factor} cannot be played: choose one above 0")
    return round(samples / factor)


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds to the nearest step and saturates; `samples` are in int16 steps."""
    steps: np.ndarray = np.clip(np.rint(samples), -_FULL_SCALE, _FULL_SCALE - 1)
    return steps.astype(np.int16)


def _damaged(path: str | os.PathLike[str]) -> str:
    return f"{path} is damaged, its audio cannot be decoded: replace it or leave it out"


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """Opens a file that has at least one sample, by its header."""
    try:
        open(path, "rb").close()  # because libsndfile does not say why it cannot open a file
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({error.strerror}): correct the path") from None
    if not os.path.getsize(path):
        raise AudioError(f"{path} is an empty file: replace it or leave it out")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless .raw
        raise AudioError(
            f"{path} is damaged or in a format that libsndfile does not read: convert it to WAV"
            " or FLAC, or leave it out"
        ) from None
    with file:
        if file.frames <= 0:
            raise AudioError(f"{path} holds no samples: replace it or leave it out")
        if file.frames == _UNKNOWN_FRAMES:
            raise AudioError(f"{path} does not say how long it is: write it anew, not to a pipe")
        yield file
