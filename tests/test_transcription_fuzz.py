"""Damaged files by the thousand: each is transcribed or gets a sentence; none hangs or leaks.

python -m pytest -m slow tests/test_transcription_fuzz.py
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import re
import threading
import time

import numpy as np
import pytest
import soundfile

import mtp_jax
from mtp_jax.data import corpus, grammar
from mtp_jax.transcription.formats import formatted
from tests.models import tiny_workdir

FILES = int(os.environ.get("MTP_FUZZ_FILES", "1200"))
WAV = ("PCM_16", "FLOAT", "PCM_24", "ULAW", "IMA_ADPCM")
OTHERS = ("FLAC", "AIFF", "AU", "CAF", "W64", "RF64")
FORMATS = (
    *(("WAV", subtype) for subtype in WAV),
    *((kind, "PCM_16") for kind in OTHERS),
    *(("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
)


def mutated(content: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """`content` with bytes changed, cut, repeated, or taken from another file."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 4))):
        kind, size = draw.integers(7), len(data)
        at = int(draw.integers(max(size, 1)))
        if kind == 0:  # some bytes anywhere
            for place in draw.integers(max(size, 1), size=int(draw.integers(1, 40))):
                data[place % max(size, 1) : place % max(size, 1) + 1] = draw.bytes(1)
        elif kind == 1:  # the header
            for place in draw.integers(min(max(size, 1), 120), size=int(draw.integers(1, 8))):
                data[place : place + 1] = draw.bytes(1)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + int(draw.integers(1, 500))]
        elif kind == 4:
            data[at:at] = data[at : at + int(draw.integers(1, 2000))]
        elif kind == 5:
            data[at:] = other[at:]
        else:  # extreme numbers, where headers have theirs
            number = int(draw.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
            order = "little" if draw.integers(2) else "big"
            place = int(draw.integers(min(max(size, 1), 80)))
            data[place : place + 4] = number.to_bytes(4, order)
    return bytes(data)


@pytest.mark.slow
def test_no_file_crashes_hangs_or_leaks(tmp_path):
    model = mtp_jax.load(tiny_workdir(tmp_path / "model"), batch_size=4)
    text = next(itertools.islice(grammar.sentences("dev", 0), 1))
    wave = soundfile.read(io.BytesIO(corpus.utterance(text, 0, "dev", 0).flac), dtype="int16")[0]
    seeds = []
    for i, (kind, subtype) in enumerate(FORMATS):
        samples = wave if i % 3 else np.stack([wave] * 2, axis=1)
        file = tmp_path / f"seed.{kind.lower()}"
        soundfile.write(
            file, samples, 48_000 if "OPUS" in subtype else 16_000, subtype, format=kind
        )
        seeds.append(file.read_bytes())
    draw = np.random.default_rng(0)
    files: list[pathlib.Path] = []

    def recordings():
        for i in range(FILES):
            first, second = draw.integers(len(seeds), size=2)
            file = tmp_path / f"{i}.{FORMATS[first][0].lower()}"
            file.write_bytes(mutated(seeds[first], seeds[second], draw))
            files.append(file)
            yield file, file

    started = time.monotonic()
    outcomes = {"text": 0, "sentence": 0}
    memory = []
    slowest, before = 0.0, started
    for file, outcome in model.transcribe_all(recordings()):
        slowest, before = max(slowest, time.monotonic() - before), time.monotonic()
        if isinstance(outcome, mtp_jax.AudioError):
            sentence = str(outcome)
            assert str(file) in sentence
            assert re.search(r"[.:,] ?[\w ]+$", sentence.replace(str(file), ""))
            assert "\n" not in sentence
            outcomes["sentence"] += 1
        else:
            json.loads(formatted(outcome, "json"))
            outcomes["text"] += 1
        file.unlink()
        memory.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096)
        assert len(list(pathlib.Path("/proc/self/fd").iterdir())) < 200
    print(f"{outcomes}, {time.monotonic() - started:.0f} s, slowest {slowest:.1f} s")
    assert sum(outcomes.values()) == FILES
    assert min(outcomes.values()) > FILES // 10
    assert not any(file.exists() for file in files)
    assert threading.active_count() < 40
    early, late = (max(memory[FILES * a // 8 : FILES * b // 8]) for a, b in ((2, 4), (6, 8)))
    assert late - early < 50e6, (early, late)
