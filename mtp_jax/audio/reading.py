"""Recordings to 16-bit mono waveforms. Imports no JAX, so that data workers stay light."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator

import numpy as np

from mtp_jax.audio.errors import AudioError as AudioError
from mtp_jax.audio.files import RATES, Recording, blocks, opened
from mtp_jax.audio.waveform import BLOCK_SAMPLES, FULL_SCALE, closed, waveform_blocks
from mtp_jax.audio.waveform import change_speed as change_speed
from mtp_jax.audio.waveform import changed_length as changed_length

Source = str | os.PathLike[str] | bytes  # a path, or the contents of a file
_log = logging.getLogger("mtp_jax")


def log_warning(message: str) -> None:
    """A `warn` for those who go on with what there is."""
    _log.warning("%s", message)


def refuse(message: str) -> None:
    """A `warn` for those who need all of a recording or nothing, such as training.

    Raises:
        AudioError: always, with the message.
    """
    raise AudioError(message)


def read_audio(
    source: Source,
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
    *,
    name: str = "",
    warn: Callable[[str], None] = log_warning,
) -> np.ndarray:
    """Reads a recording, or a part of it, as mono at the sample rate wanted.

    Whatever libsndfile or FFmpeg reads will do: WAV, FLAC, MP3, Ogg (Vorbis, Opus), MP4, WebM and
    more, at any rate. All of it is decoded, whatever its header says of its length. Channels are
    averaged, unless they cancel one another; then one of them is read. The result is resampled by
    soxr ("HQ": flat to 0.91 of the Nyquist frequency). A 16-bit mono file that already has the
    rate wanted comes back bit for bit.

    Args:
        source: path of the file, or its contents.
        sample_rate: of the result, in Hz.
        offset: where to start, in seconds.
        duration: how much to read, in seconds; None, or more than there is, reads to the end.
        name: of the recording, for messages; by default the path.
        warn: is called with a sentence if the file promises more than can be decoded. By default
            it goes to the logger ``mtp_jax``.

    Returns:
        int16[T], T at least 1.

    Raises:
        AudioError: the file is missing, not audio, empty or holds samples that are not finite or
            on another scale, or nothing of it lies in the part asked for.
    """
    name = name or _name(source)
    if offset < 0 or (duration is not None and duration <= 0):
        raise AudioError(
            f"{name} cannot be read from {offset} s for {duration} s: give an offset of 0 or more"
            " and a duration above 0"
        )
    waves = list(_file_blocks(source, sample_rate, offset, duration, name, warn))
    if not waves:
        raise AudioError(f"{name} is shorter than one sample at {sample_rate} Hz: leave it out")
    return np.concatenate(waves)


def audio_blocks(
    path: str | os.PathLike[str], sample_rate: int, *, warn: Callable[[str], None] = log_warning
) -> Iterator[np.ndarray]:
    """Reads a recording as `read_audio` does, but a few seconds at a time, however long it is.

    Args:
        path: of the file.
        sample_rate: of the result, in Hz.
        warn: as of `read_audio`, after the last block.

    Yields:
        int16[T], none of them empty; together they are what `read_audio` returns.

    Raises:
        AudioError: as `read_audio` does, once that part is reached; or the file changed meanwhile.
    """
    before = os.stat(path) if os.path.exists(path) else None
    yield from _file_blocks(path, sample_rate, 0.0, None, str(path), warn)
    after = os.stat(path)
    if before and (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise AudioError(f"{path} changed while it was read: repeat once it is whole")


def _file_blocks(
    source: Source,
    sample_rate: int,
    offset: float,
    duration: float | None,
    name: str,
    warn: Callable[[str], None],
) -> Iterator[np.ndarray]:
    """int16[T], none of them empty."""
    any_read, seconds, left = False, 0.0, duration  # seconds: of the recordings before
    with (
        opened(source, name) as file,
        contextlib.closing(file.recordings(warn)) as recordings,  # type: ignore[type-var]  # a generator
    ):
        for recording in recordings:
            rate = recording.rate
            start = round(max(offset - seconds, 0.0) * rate)
            count = None if left is None else max(1, round(left * rate))
            part = _Counted(blocks(recording, start, count, name, warn))
            yield from waveform_blocks(part, name, rate, sample_rate)
            any_read = any_read or part.frames > 0
            if left is not None:
                left -= part.frames / rate
                if round(left * rate) < 1:
                    return
            seconds += (recording.frames or start + part.frames) / rate
    if any_read:
        return
    if seconds and offset >= seconds:
        raise AudioError(
            f"{name} is {seconds:g} s long, so that nothing is left after an offset of"
            f" {offset:g} s: correct the offset"
        )
    raise AudioError(_nothing(name))


class _Counted:
    """Blocks, and how many frames they had."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self.frames = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        with closed(self._blocks):
            for block in self._blocks:
                self.frames += len(block)
                yield block


def array_blocks(samples: np.ndarray, rate: float | None, sample_rate: int) -> Iterator[np.ndarray]:
    """Samples in memory, as `audio_blocks` reads a file.

    Args:
        samples: int16, or floats with full scale at 1.0; [T] or [T, channels].
        rate: of `samples`, in Hz.
        sample_rate: of the result, in Hz.

    Yields:
        int16[T].

    Raises:
        AudioError: it is no such array, it is empty, has more channels than samples, or a sample
            is not finite or on another scale.
    """
    samples = np.asarray(samples)
    known = isinstance(rate, (int, float, np.number)) and RATES[0] <= rate <= RATES[1]
    if rate is None or not known:
        raise AudioError(f"an array of samples needs its rate in Hz, not {rate!r}: give rate=16000")
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise AudioError(f"samples are int16, or floats within [-1, 1], not {samples.dtype}")
    if samples.ndim not in (1, 2) or not samples.size:
        raise AudioError(f"samples have the shape [T] or [T, channels], not {samples.shape}")
    table = samples.reshape(len(samples), -1)
    if table.shape[1] > len(table):
        raise AudioError(
            f"samples of the shape {samples.shape} have more channels than samples: the shape is"
            " [T] or [T, channels], so give samples.T"
        )

    def floats() -> Iterator[np.ndarray]:
        size = max(1, BLOCK_SAMPLES // table.shape[1])
        for at in range(0, len(table), size):
            block = table[at : at + size].astype(np.float32)
            if samples.dtype == np.int16:
                block /= FULL_SCALE
            yield block

    yield from waveform_blocks(floats(), "an array", float(rate), sample_rate)


def audio_seconds(source: Source, *, name: str = "", at_most: float = math.inf) -> float:
    """Length of a file in seconds: by a header that can be believed, else by decoding it.

    Args:
        source: path of the file, or its contents.
        name: of the recording, for messages; by default the path.
        at_most: seconds; of a longer one no more is decoded, and the result is more than that. Few
            bytes may unpack to months.

    Raises:
        AudioError: the file is missing, not audio or empty. Damage behind a header that can be
            believed is found only by `read_audio`.
    """
    name = name or _name(source)
    seconds = 0.0
    with opened(source, name) as file:
        for recording in file.recordings(warn=lambda message: None):
            frames = recording.frames
            if frames is None:
                frames = _decoded_frames(recording, (at_most - seconds) * recording.rate)
            seconds += frames / recording.rate
            if seconds > at_most:
                break
    if not seconds:
        raise AudioError(_nothing(name))
    return seconds


def _decoded_frames(recording: Recording, at_most: float) -> int:
    """Frames of a recording, or more than `at_most` of them."""
    frames, steps = 0, recording.steps()
    with closed(steps):
        for step in steps:
            frames += len(step)
            if frames > at_most:
                break
    return frames


def reads_parts(source: Source, *, name: str = "") -> bool:
    """Whether a part of a file is read without decoding all that lies before it.

    Args:
        source: path of the file, or its contents.
        name: of the recording, for messages; by default the path.

    Raises:
        AudioError: the file is missing, not audio or empty.
    """
    with opened(source, name or _name(source)) as file:
        recordings = file.recordings(warn=lambda message: None)
        return all(recording.frames is not None for recording in recordings)


def _name(source: Source) -> str:
    return "the audio" if isinstance(source, bytes) else str(source)


def _nothing(name: str) -> str:
    return f"{name} holds no samples that can be decoded: replace it or leave it out"
