"""A source of audio files, whatever listed them (a manifest, a directory tree)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtp_jax.audio.reading import AudioError, audio_seconds, read_audio, refuse
from mtp_jax.data.source import Problem, Source, Utterance


@dataclasses.dataclass(frozen=True)
class Recording:
    """An audio file, or the part of it that is one utterance.

    Attributes:
        id, text, speaker, lang: as in `Utterance`.
        path: of the file.
        offset: seconds at which the utterance starts.
        duration: its seconds, or None for all that follows.
    """

    id: str
    path: Path
    text: str
    speaker: str = ""
    lang: str = ""
    offset: float = 0.0
    duration: float | None = None

    def length(self) -> float:
        """Seconds of the utterance, by the file itself.

        Raises:
            AudioError: the file cannot be read.
        """
        seconds = max(audio_seconds(self.path) - self.offset, 0.0)
        return seconds if self.duration is None else min(seconds, self.duration)

    def read(self, sample_rate: int) -> np.ndarray:
        """int16[T] of the utterance, at `sample_rate` in Hz.

        Raises:
            AudioError: it cannot be read, or not all of it.
        """
        # A text of the whole does not go with a part of its audio.
        return read_audio(self.path, sample_rate, self.offset, self.duration, warn=refuse)

    def digest(self, sample_rate: int) -> str:
        """SHA-256 that changes with the file, the part of it, and the rate it is read at.

        Raises:
            AudioError: the file cannot be read.
        """
        try:
            status = self.path.stat()
            audio = _file_digest(self.path, status.st_size, status.st_mtime_ns).copy()
        except OSError as error:
            raise AudioError(f"{self.path} cannot be read: {error.strerror}") from None
        audio.update(repr((self.offset, self.duration, sample_rate)).encode())
        return audio.hexdigest()


class Listed(NamedTuple):
    """What a source holds, where it is known already.

    Attributes:
        recordings: the utterances, in order.
        lengths: seconds of each.
        problems: what cannot be used.
    """

    recordings: list[Recording]
    lengths: list[float]
    problems: list[Problem]


def file_source(
    name: str,
    recordings: Sequence[Recording],
    problems: Iterable[Problem],
    sample_rate: int,
    workers: int,
    lengths: Sequence[float] | None = None,
) -> Source:
    """A source of `recordings`, whose true lengths are read from the files.

    Args:
        name: of the source.
        recordings: in the order of the source.
        problems: those found by whoever listed them.
        sample_rate: Hz of the waveforms.
        workers: threads that read them.
        lengths: seconds of each recording, where they are known; no file is opened then.
    """
    found: Sequence[float | Problem]
    if lengths is None:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(_seconds, recordings))
    else:
        found = lengths
    problems = list(problems) + [x for x in found if isinstance(x, Problem)]
    good = [(r, x) for r, x in zip(recordings, found, strict=True) if isinstance(x, float)]
    utterances = [Utterance(r.id, r.text, x, r.speaker, r.lang) for r, x in good]

    def waveform(i: int) -> np.ndarray:
        return good[i][0].read(sample_rate)

    def digest(i: int) -> str:
        return good[i][0].digest(sample_rate)

    return Source(name, "", utterances, problems, waveform, digest)


def _seconds(recording: Recording) -> float | Problem:
    """Length of the utterance by the file itself, or what is wrong with the file."""
    if not recording.path.is_file():
        return Problem(recording.id, "missing file", str(recording.path), recording.text)
    try:
        return recording.length()
    except AudioError as error:
        return Problem(recording.id, "unreadable audio", str(error), recording.text)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified: int) -> Any:
    """SHA-256 of a file, to go on from: a long one may hold hundreds of utterances."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
