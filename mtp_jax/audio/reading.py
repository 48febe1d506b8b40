"""Recordings to 16-bit mono waveforms. Imports no JAX, so that data workers stay light."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

_FULL_SCALE = 32768  # int16 steps in the amplitude that libsndfile calls 1.0
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
_RATES = (1000, 1_000_000)  # Hz; a header that says otherwise is damaged
_BLOCK_SAMPLES = 1 << 20  # of all channels together
_LOUDEST = 16.0  # float samples beyond are on another scale


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
    mono = _mono(path, samples)
    if file_rate != sample_rate:
        mono = soxr.resample(mono, file_rate, sample_rate)
    if not mono.size:
        raise AudioError(f"{path} is shorter than one sample at {sample_rate} Hz: leave it out")
    return _to_int16(mono * _FULL_SCALE)


def audio_blocks(path: str | os.PathLike[str], sample_rate: int) -> Iterator[np.ndarray]:
    """Reads a recording as `read_audio` does, but a few seconds at a time, however long it is.

    Args:
        path: of the file.
        sample_rate: of the result, in Hz.

    Yields:
        int16[T], none of them empty; together they are what `read_audio` returns, to a step.

    Raises:
        AudioError: as `read_audio` does, once that part is reached; or the file changed meanwhile.
    """
    with _opened(path, known_length=False) as file:
        before = os.stat(path)
        yield from _resampled(_mono_blocks(path, file), file.samplerate, sample_rate)
        after = os.stat(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise AudioError(f"{path} changed while it was read: repeat once it is whole")


def array_blocks(samples: np.ndarray, rate: int | None, sample_rate: int) -> Iterator[np.ndarray]:
    """Samples in memory, as `audio_blocks` reads a file.

    Args:
        samples: int16, or floats with full scale at 1.0; [T] or [T, channels].
        rate: of `samples`, in Hz.
        sample_rate: of the result, in Hz.

    Yields:
        int16[T].

    Raises:
        AudioError: it is no such array, it is empty, or a sample is not finite.
    """
    samples = np.asarray(samples)
    if rate is None or not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"an array of samples needs its rate in Hz, not {rate}: give rate=16000")
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise AudioError(f"samples are int16, or floats within [-1, 1], not {samples.dtype}")
    if samples.ndim not in (1, 2) or not samples.size:
        raise AudioError(f"samples have the shape [T] or [T, channels], not {samples.shape}")

    def mono() -> Iterator[np.ndarray]:
        table = samples.reshape(len(samples), -1)
        size = max(1, _BLOCK_SAMPLES // table.shape[1])
        for at in range(0, len(table), size):
            block = table[at : at + size].astype(np.float32)
            if samples.dtype == np.int16:
                block /= _FULL_SCALE
            elif np.abs(block).max() > _LOUDEST:
                raise AudioError("float samples lie within [-1, 1]: divide those of int16 by 32768")
            yield _mono("an array", block)

    yield from _resampled(mono(), rate, sample_rate)


def _mono_blocks(path: str | os.PathLike[str], file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """float64[T], all that can be read of a file."""
    size, read = max(1, _BLOCK_SAMPLES // file.channels), 0
    while True:
        try:
            samples = file.read(size, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, MemoryError):
            raise AudioError(_damaged(path, read / file.samplerate)) from None
        if not len(samples):
            break
        read += len(samples)
        yield _mono(path, samples)
    if not read:
        raise AudioError(_damaged(path))


def _resampled(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """int16[T] of float64[T], none of them empty."""
    if rate == sample_rate:
        yield from (_to_int16(block * _FULL_SCALE) for block in blocks)
        return
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float64")
    for block in blocks:
        made = resampler.resample_chunk(block)
        if made.size:
            yield _to_int16(made * _FULL_SCALE)
    made = resampler.resample_chunk(np.zeros(0), last=True)
    if made.size:
        yield _to_int16(made * _FULL_SCALE)


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


def _mono(path: str | os.PathLike[str], samples: np.ndarray) -> np.ndarray:
    """float64[T] of float32[T, channels]."""
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers: make it again")
    mono: np.ndarray = samples.mean(axis=1, dtype=np.float64)  # room until it saturates
    return mono


def _damaged(path: str | os.PathLike[str], seconds: float = 0.0) -> str:
    where = f"after {seconds:.0f} s " if seconds else ""
    return f"{path} is damaged, its audio {where}cannot be decoded: replace it or leave it out"


@contextlib.contextmanager
def _opened(
    path: str | os.PathLike[str], known_length: bool = True
) -> Iterator[soundfile.SoundFile]:
    """Opens a file that has at least one sample, by its header."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # to open one may wait for ever
            raise AudioError(f"{path} is a pipe: write what comes out of it to a file")
        open(path, "rb").close()  # because libsndfile does not say why it cannot open a file
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({error.strerror}): correct the path") from None
    if not os.path.getsize(path):
        raise AudioError(f"{path} is an empty file: replace it or leave it out")
    try:
        file = soundfile.SoundFile(os.fsencode(path))  # any name, also one that is not UTF-8
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless .raw
        raise AudioError(
            f"{path} is damaged or in a format that libsndfile does not read: convert it to WAV"
            " or FLAC, or leave it out"
        ) from None
    with file:
        if file.frames <= 0:
            raise AudioError(f"{path} holds no samples: replace it or leave it out")
        if not _RATES[0] <= file.samplerate <= _RATES[1]:
            raise AudioError(
                f"{path} says that it has {file.samplerate} samples a second: make it again"
            )
        if known_length and file.frames == _UNKNOWN_FRAMES:
            raise AudioError(f"{path} does not say how long it is: write it anew, not to a pipe")
        yield file
