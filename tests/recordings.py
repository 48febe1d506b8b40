"""Speech to transcribe: sentences of the embedded corpus."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from mtp_jax.data import Batch, corpus, grammar

RATE = 16_000


def sentences(count: int) -> list[np.ndarray]:
    """int16[T] of each."""
    texts = itertools.islice(grammar.sentences("dev", 0), count)
    spoken = [corpus.utterance(text, 0, "dev", i) for i, text in enumerate(texts)]
    return [soundfile.read(io.BytesIO(item.flac), dtype="int16")[0] for item in spoken]


def flac(samples: np.ndarray, kind: str = "FLAC") -> bytes:
    """A file of them."""
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()


def noise_folder(folder: Path, rows: int, low: int, high: int, **fields: str) -> Path:
    """Recordings of noise, of `low` to `high` samples, and a manifest ``audio.jsonl``.

    Args:
        folder: where; `rows`: how many.
        fields: of every line of the manifest, beyond file and duration.
    """
    rng, lines = np.random.default_rng(3), []
    for i in range(rows):
        wave = rng.normal(scale=rng.uniform(100, 8000), size=rng.integers(low, high))
        soundfile.write(folder / f"{i}.wav", wave.astype(np.int16), RATE)
        lines.append({"audio_filepath": f"{i}.wav", "duration": len(wave) / RATE, **fields})
    (folder / "audio.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def batch_of_folder(folder: Path, rows: int, samples: int) -> Batch:
    """The recordings of `noise_folder`, padded to so many samples."""
    waves = [soundfile.read(folder / f"{i}.wav", dtype="int16")[0] for i in range(rows)]
    audio = np.zeros((rows, samples), np.int16)
    for row, wave in zip(audio, waves, strict=True):
        row[: len(wave)] = wave
    return Batch(
        audio=audio,
        audio_length=np.array([len(wave) for wave in waves], np.int32),
        tokens=np.zeros((rows, 0), np.int32),
        token_length=np.zeros(rows, np.int32),
        index=np.arange(rows, dtype=np.int32),
    )


def noise_batch(samples: Sequence[int]) -> Batch:
    """A row of noise of each length; no text."""
    audio = np.random.default_rng(0).normal(scale=3000, size=(len(samples), max(samples)))
    length = np.array(samples, np.int32)
    audio[np.arange(audio.shape[1]) >= length[:, None]] = 0
    return Batch(
        audio=audio.astype(np.int16),
        audio_length=length,
        tokens=np.zeros((len(samples), 0), np.int32),
        token_length=np.zeros(len(samples), np.int32),
        index=np.arange(len(samples), dtype=np.int32),
    )
