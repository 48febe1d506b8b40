"""Utterances of every kind, drawn by number: the same number is the same utterance.

Real ones of the manifests in a folder, degraded copies of them, the embedded corpus, silence, noise
and simple music.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from bench.telephone import telephone
from mtp_jax.audio.reading import read_audio
from mtp_jax.data import corpus, grammar

RATE = 16_000
KINDS = {"real": 0.42, "degraded": 0.36, "embedded": 0.1, "noise": 0.04, "music": 0.04}
KINDS["silence"] = 1 - sum(KINDS.values())
_SENTENCES = 2000  # of the embedded corpus

Draw = np.random.Generator


class Utterance(NamedTuple):
    """One of them.

    Attributes:
        name: what it is made from, and how.
        kind: one of `KINDS`.
        corpus: of a real one or a degraded copy: its manifest; else the kind.
        audio: int16[T].
    """

    name: str
    kind: str
    corpus: str
    audio: np.ndarray


class Utterances:
    """All there are.

    Args:
        folder: of manifests, ``*.jsonl``, each line with an ``audio_filepath``.
        seconds: longer recordings are cut, at a random place.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self._folder, self._samples, self._seed = folder, round(seconds * RATE), seed
        self._recordings = [
            (manifest.stem, str(json.loads(line)["audio_filepath"]))
            for manifest in sorted(folder.glob("*.jsonl"))
            for line in manifest.read_text().splitlines()
        ]
        if not self._recordings:
            raise SystemExit(f"{folder} holds no manifests: name a folder with *.jsonl files")
        self._corpora = sorted({corpus for corpus, _ in self._recordings})
        self._texts: list[str] = []

    def __getitem__(self, number: int) -> Utterance:
        draw = np.random.default_rng([self._seed, number])
        kind = str(draw.choice(list(KINDS), p=list(KINDS.values())))
        if kind in ("real", "degraded"):
            return self._real(draw, kind)
        if kind == "embedded":
            return self._embedded(draw)
        count = int(draw.integers(RATE // 4, self._samples + 1))
        wave = {"noise": _noise, "music": _music, "silence": _silence}[kind](count, draw)
        return Utterance(f"{kind} {number}", kind, kind, _int16(wave))

    def _real(self, draw: Draw, kind: str) -> Utterance:
        # Half by corpus, so that small ones count; half by recording.
        chosen = str(draw.choice(self._corpora)) if draw.random() < 0.5 else ""
        among = [r for r in self._recordings if r[0] == chosen] if chosen else self._recordings
        corpus_, path = among[draw.integers(len(among))]
        wave = read_audio(self._folder / path, RATE)
        start = int(draw.integers(max(len(wave) - self._samples, 0) + 1))
        wave = wave[start : start + self._samples]
        name = f"{path} from {start / RATE:.2f} s"
        if kind == "degraded":
            how = str(draw.choice(list(_DEGRADED)))
            wave = _int16(_DEGRADED[how](wave.astype(np.float64), draw))
            name = f"{name}, {how}"
        return Utterance(name, kind, corpus_, wave)

    def _embedded(self, draw: Draw) -> Utterance:
        if not self._texts:
            sentences = grammar.sentences("dev", 0)
            self._texts = [next(sentences) for _ in range(_SENTENCES)]
        place = int(draw.integers(_SENTENCES))
        flac = corpus.utterance(self._texts[place], 0, "dev", place).flac
        wave = soundfile.read(io.BytesIO(flac), dtype="int16")[0]
        return Utterance(f"embedded {place}", "embedded", "embedded", wave[: self._samples])


def _int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.round(wave), -32768, 32767).astype(np.int16)


def _silence(count: int, draw: Draw) -> np.ndarray:
    return draw.normal(0, draw.choice([0.0, 0.5, 3.0]), count)


def _noise(count: int, draw: Draw) -> np.ndarray:
    """White, brown, or bursts of it."""
    white = draw.normal(0, 1, count)
    way = draw.integers(3)
    if way == 1:
        white = np.cumsum(white) * 0.02
        white -= np.convolve(white, np.ones(401) / 401, "same")
    elif way == 2:
        white *= np.repeat(draw.random(count // 4000 + 1) < 0.5, 4000)[:count]
    return white * draw.uniform(50, 8000)


def _music(count: int, draw: Draw) -> np.ndarray:
    """Chords of decaying tones with overtones, at random times."""
    wave = np.zeros(count)
    for _ in range(int(draw.integers(2, 12))):
        at = int(draw.integers(count))
        time = np.arange(min(count - at, RATE)) / RATE
        for _ in range(int(draw.integers(1, 4))):
            hertz = 440 * 2 ** (int(draw.integers(-24, 25)) / 12)
            for overtone in range(1, 6):
                tone = np.sin(2 * np.pi * hertz * overtone * time) / overtone**1.5
                wave[at : at + len(time)] += tone * np.exp(-time * draw.uniform(1, 8))
    return wave * draw.uniform(500, 6000)


def _gain(wave: np.ndarray, draw: Draw) -> np.ndarray:
    return wave * 10 ** (draw.uniform(-40, 20) / 20)


def _noisy(wave: np.ndarray, draw: Draw) -> np.ndarray:
    """Noise at 20 to -5 dB."""
    noise = _noise(len(wave), draw)
    level = np.sqrt(np.mean(wave**2) + 1) / np.sqrt(np.mean(noise**2) + 1)
    return wave + noise * level * 10 ** (-draw.uniform(-5, 20) / 20)


def _telephone(wave: np.ndarray, draw: Draw) -> np.ndarray:
    return telephone(wave)


def _far(wave: np.ndarray, draw: Draw) -> np.ndarray:
    """Across a room."""
    return corpus.degraded((wave / 32768).astype(np.float32), draw) * 32768


def _clipped(wave: np.ndarray, draw: Draw) -> np.ndarray:
    most = max(np.abs(wave).max(initial=0) * draw.uniform(0.02, 0.3), 1)
    return np.clip(wave, -most, most)


def _reversed(wave: np.ndarray, draw: Draw) -> np.ndarray:
    return wave[::-1]


def _faster(wave: np.ndarray, draw: Draw) -> np.ndarray:
    """Faster and higher."""
    return soxr.resample(wave, RATE, round(RATE / draw.uniform(1.1, 1.8)))


_DEGRADED: dict[str, Callable[[np.ndarray, Draw], np.ndarray]] = {
    "gain": _gain,
    "noise": _noisy,
    "telephone": _telephone,
    "far": _far,
    "clipped": _clipped,
    "reversed": _reversed,
    "faster": _faster,
}


def with_errors(text: Sequence[int], rate: float, alphabet: Sequence[int], draw: Draw) -> list[int]:
    """Tokens of which a share is left out, replaced, or has others put in front of it.

    Args:
        text: the tokens.
        rate: of each kind of error, together.
        alphabet: tokens that others are replaced by.
        draw: what decides.
    """
    found: list[int] = []
    for token in text:
        error = draw.random() / rate if rate else 1.0
        if error < 1 / 3:
            continue
        if error < 2 / 3:
            found.append(int(draw.choice(alphabet)))
        elif error < 1:
            found += [int(draw.choice(alphabet)), token]
        else:
            found.append(token)
    return found
