"""A source of audio files, whatever listed them (a manifest, a directory tree)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def file_source(
    name: str,
    recordings: Sequence[Recording],
    problems: Iterable[Problem],
    sample_rate: int,
    workers: int,
) -> Source:
    """A source of `recordings`, whose true lengths are read from the files.

    Args:
        name: of the source.
        recordings: in the order of the source.
        problems: those found by whoever listed them.
        sample_rate: Hz of the waveforms.
        workers: threads that read them.
    """
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        lengths = list(pool.map(_seconds, recordings))
    problems = list(problems) + [x for x in lengths if isinstance(x, Problem)]
    good = [(r, x) for r, x in zip(recordings, lengths, strict=True) if isinstance(x, float)]
    utterances = [Utterance(r.id, r.text, x, r.speaker, r.lang) for r, x in good]

    def waveform(i: int) -> np.ndarray:
        r = good[i][0]
        # A text of the whole does not go with a part of its audio.
        return read_audio(r.path, sample_rate, r.offset, r.duration, warn=refuse)

    def digest(i: int) -> str:
        recording = good[i][0]
        try:
            audio = hashlib.sha256(recording.path.read_bytes())
        except OSError as error:
            raise AudioError(f"{recording.path} cannot be read: {error.strerror}") from None
        audio.update(repr((recording.offset, recording.duration, sample_rate)).encode())
        return audio.hexdigest()

    return Source(name, "", utterances, problems, waveform, digest)


def _seconds(recording: Recording) -> float | Problem:
    """Length of the utterance by the file itself, or what is wrong with the file."""
    if not recording.path.is_file():
        return Problem(recording.id, "missing file", str(recording.path), recording.text)
    try:
        seconds = max(audio_seconds(recording.path) - recording.offset, 0.0)
    except AudioError as error:
        return Problem(recording.id, "unreadable audio", str(error), recording.text)
    return seconds if recording.duration is None else min(seconds, recording.duration)
