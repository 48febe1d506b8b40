"""What a source of utterances is, and the report of what it could not use."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mtp_jax.data.views import View


class DataError(ValueError):
    """Data that cannot be used at all; the message names the culprit and a remedy."""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance, without its audio.

    Attributes:
        id: its name in the source.
        text: what is said.
        seconds: its length, as read from the audio.
        speaker, lang: who speaks and in what language; empty where the source does not say.
        tokens: the text as a model wrote it, without EOS; None leaves it to the tokenizer.
    """

    id: str
    text: str
    seconds: float
    speaker: str = ""
    lang: str = ""
    tokens: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """One item that was skipped.

    Attributes:
        id: of the item, or ``line 7`` where it has no name.
        reason: one of few, such as "too long"; they are counted.
        detail: what a reader needs to put it right.
        text: what is said in it, where that is known.
    """

    id: str
    reason: str
    detail: str = ""
    text: str = ""


class Report:
    """What was read and what was skipped; grows when audio turns out to be unreadable later.

    Attributes:
        name: of the source.
        kept: utterances in use.
        problems: items skipped, each once.
    """

    def __init__(self, name: str, kept: int, problems: Iterable[Problem] = ()) -> None:
        self.name = name
        self.kept = kept
        self.problems: list[Problem] = []
        self._seen: set[Problem] = set()
        self._lock = threading.Lock()  # batches are loaded by several threads
        for problem in problems:
            self.add(problem)

    def add(self, problem: Problem) -> bool:
        """Notes `problem`; False if it was noted before."""
        with self._lock:
            if problem in self._seen:
                return False
            self._seen.add(problem)
            self.problems.append(problem)
            return True

    def counts(self) -> dict[str, int]:
        """Items skipped by reason, the commonest first."""
        return dict(collections.Counter(p.reason for p in self.problems).most_common())

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "source": self.name,
            "kept": self.kept,
            "skipped": self.counts(),
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }

    def skipped(self) -> str:
        """How many were skipped and why, with three names a reason; "none" if none was."""
        reasons = []
        for reason, count in self.counts().items():
            alike = [p for p in self.problems if p.reason == reason][:3]
            # A line has no name that tells what is wrong with it.
            told = [f"{p.id}: {p.detail}" if reason == "wrong field" else p.id for p in alike]
            more = ", ..." if count > len(told) else ""
            reasons.append(f"{count} {reason} ({', '.join(told)}{more})")
        return "; ".join(reasons) or "none"

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.name}: {self.kept} utterances, skipped: {self.skipped()}"


@dataclasses.dataclass(frozen=True)
class Features:
    """Features made beforehand, which stand in for a source's waveforms.

    Attributes:
        width: D.
        frames: ``frames(samples) -> int``, of a waveform so long.
        read: ``read(i, speed) -> float16[T, D], samples``: those of ``utterances[i]`` played at
            `speed`, and the length of that waveform.
    """

    width: int
    frames: Callable[[int], int]
    read: Callable[[int, float], tuple[np.ndarray, int]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Utterances and a way to read their audio.

    Attributes:
        name, split: of the data set; a folder or manifest has no split.
        utterances: in a fixed order.
        problems: items that were skipped.
        waveform: ``waveform(i) -> int16[T]`` reads the audio of ``utterances[i]`` at the sample
            rate the source was opened with; it may be called from several threads, and raises
            `mtp_jax.audio.reading.AudioError` where that file cannot be read.
        digest: ``digest(i) -> str`` changes with the audio of ``utterances[i]``; raises as above.
            None if there is nothing quicker than to read the waveform.
        features: read in place of waveforms, where there are any.
    """

    name: str
    split: str
    utterances: Sequence[Utterance]
    problems: Sequence[Problem]
    waveform: Callable[[int], np.ndarray]
    digest: Callable[[int], str] | None = None
    features: Features | None = None

    def subset(self, kept: Sequence[int], problems: Iterable[Problem] = ()) -> Source:
        """The utterances at these places, with `problems` behind those that there are."""
        places, features = np.asarray(kept, int), self.features
        if features is not None:
            read = features.read
            features = dataclasses.replace(features, read=lambda i, speed: read(places[i], speed))
        return dataclasses.replace(
            self,
            utterances=View(len(places), lambda i: self.utterances[int(places[i])]),
            problems=[*self.problems, *problems],
            waveform=lambda i: self.waveform(int(places[i])),
            digest=lambda i: self.audio_digest(int(places[i])),
            features=features,
        )

    def audio_digest(self, i: int) -> str:
        """Changes with the audio of ``utterances[i]``, or with the rate it is read at."""
        if self.digest:
            return self.digest(i)
        return hashlib.sha256(self.waveform(i).tobytes()).hexdigest()

    @property
    def title(self) -> str:
        """Name and split."""
        return f"{self.name}:{self.split}" if self.split else self.name
