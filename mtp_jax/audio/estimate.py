"""About how long a recording is, for bars that show progress: nothing is decoded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import av
import soundfile

from mtp_jax.audio.files import DEMUXERS

_UNKNOWN_FRAMES = 2**62  # libsndfile says about twice as many where a header tells no length
_BY_BIT_RATE = ("MP3", "MPEG")  # libsndfile guesses from the first frames; FFmpeg guesses better


def estimated_seconds(path: str | os.PathLike[str]) -> float:
    """Seconds of audio by the header, else by the bit rate; 0 where neither tells.

    It takes a millisecond or two, where `audio_seconds` may decode the file, but a header may lie.
    What is wrong with a file is not said: reading it will.
    """
    with contextlib.suppress(OSError):
        if Path(path).is_file():  # to open a pipe may wait for ever
            return _libsndfile(path) or _ffmpeg(path)
    return 0.0


def _libsndfile(path: str | os.PathLike[str]) -> float:
    with contextlib.suppress(soundfile.LibsndfileError, TypeError):  # TypeError: headerless .raw
        header = soundfile.info(os.fsencode(path))
        if header.format not in _BY_BIT_RATE and 0 < header.frames < _UNKNOWN_FRAMES:
            return float(header.frames / header.samplerate)
    return 0.0


def _ffmpeg(path: str | os.PathLike[str]) -> float:
    options = {"format_whitelist": DEMUXERS}
    with (
        contextlib.suppress(av.FFmpegError, ValueError, MemoryError),
        av.open(os.fspath(path), options=options, metadata_errors="replace") as container,
    ):
        return max(float((container.duration or 0) / av.time_base), 0.0)
    return 0.0
