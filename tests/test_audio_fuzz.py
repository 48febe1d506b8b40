"""Damaged files of every container: read as far as they go, or refused in a sentence.

python -m pytest -m slow tests/test_audio_fuzz.py
"""

from __future__ import annotations

import os
import pathlib
import time

import numpy as np
import pytest

from mtp_jax.audio.reading import AudioError, audio_seconds, read_audio
from tests.audio_files import RATE, encode, tone, write

FILES = int(os.environ.get("MTP_FUZZ_FILES", "6000"))
SECONDS = 3.0  # of every seed
SLOWEST = 20.0  # s for one file, on a busy machine
SOUNDFILE = ["wav", "rifx", "aiff", "caf", "w64", "rf64", "au", "flac", "ogg", "opus", "mp3"]
SUBTYPES = ["FLOAT", "PCM_24", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"]
FFMPEG = {
    "a.m4a": "aac",
    "a.mp4": "aac",
    "a.mov": "alac",
    "a.webm": "libopus",
    "a.mka": "flac",
    "a.aac": "aac",
    "a.wma": "wmav2",
    "a.avi": "libmp3lame",
    "a.mpg": "mp2",
    "a.ts": "aac",
    "a.3gp": "libopencore_amrnb",
    "a.amr": "libopencore_amrnb",
    "a.flv": "aac",
    "a.ac3": "ac3",
    "a.tta": "tta",
    "a.wv": "wavpack",
}


# Seconds that a byte can hold: a constant frame of FLAC at 1 kHz, an Opus packet of a byte, frames
# of MPEG audio at 8 kbit/s; else 8 samples at 1 kHz, the lowest rate that is read.
DENSEST = {"flac": 6.0, "mka": 6.0, "tta": 6.0, "wv": 6.0, "opus": 0.12, "ogg": 0.12, "webm": 0.12}


def seeds(folder: pathlib.Path) -> list[tuple[str, bytes]]:
    """A suffix and a file of each container, and of some codecs."""
    draw = np.random.default_rng(0)
    wave = tone(440, SECONDS) / 2 + draw.uniform(-0.1, 0.1, (round(SECONDS * RATE), 1))
    found = []
    for suffix in SOUNDFILE:
        found.append((suffix, write(folder / f"a.{suffix}", wave)))
    for subtype in SUBTYPES:
        found.append(("wav", write(folder / "b.wav", wave, RATE, subtype)))
    for name, codec in FFMPEG.items():
        rate = {"libopus": 48_000, "ac3": 48_000, "libopencore_amrnb": 8000}.get(codec, RATE)
        samples = np.repeat(wave, 3, axis=0) if rate > RATE else wave[:: RATE // rate]
        suffix = name.rpartition(".")[2]
        found.append((suffix, encode(folder / name, samples, rate, codec)))
    return found


def damaged(content: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """`content` with bytes changed, zeroed, cut off, taken out, repeated, or of another file."""
    data = bytearray(content)
    for _ in range(int(draw.integers(1, 4))):
        size = max(len(data), 1)
        at, length = int(draw.integers(size)), int(draw.integers(1, 2000))
        header = int(draw.integers(min(size, 120)))
        kind = draw.integers(9)
        if kind == 0:
            for place in draw.integers(size, size=int(draw.integers(1, 40))):
                data[place : place + 1] = draw.bytes(1)
        elif kind == 1:
            data[header : header + 1] = draw.bytes(1)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 6:
            data[at:] = other
        elif kind == 7:
            data += other
        else:  # extreme numbers, where headers have theirs
            number = int(draw.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
            order = "little" if draw.integers(2) else "big"
            width = int(draw.choice([2, 4, 8]))
            data[header : header + width] = (number % 256**width).to_bytes(width, order)
    return bytes(data)


def run(folder: pathlib.Path, files: int, seed: int) -> dict[str, float]:
    """Reads that many damaged files; how they ended."""
    made = seeds(folder)
    draw = np.random.default_rng(seed)
    counts = {"read": 0, "warned": 0, "refused": 0, "slowest": 0.0}
    descriptors = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for i in range(files):
        suffix, content = made[i % len(made)]
        other, taken_from = made[int(draw.integers(len(made)))]
        data = damaged(content, taken_from, draw)
        path = folder / f"{seed}.{suffix}"
        path.write_bytes(data)
        started, said = time.monotonic(), []
        try:
            waveform = read_audio(path, RATE, warn=said.append)
            seconds = audio_seconds(path)
        except AudioError as error:
            assert "\n" not in str(error) and str(path) in str(error), error
            counts["refused"] += 1
        else:
            densest = max(DENSEST.get(kind, 0.008) for kind in (suffix, other))
            assert len(waveform) / RATE < densest * len(data), (i, suffix, len(data), len(waveform))
            assert seconds > 0
            assert all(str(path) in sentence for sentence in said)
            counts["warned" if said else "read"] += 1
        taken = time.monotonic() - started
        assert taken < SLOWEST, (i, suffix, taken)
        counts["slowest"] = max(counts["slowest"], taken)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == descriptors
    return counts


def test_some_damaged_files_end_as_they_should(tmp_path):
    counts = run(tmp_path, 150, 1)
    assert min(counts["read"], counts["warned"], counts["refused"]) > 10


@pytest.mark.slow
def test_no_damaged_file_crashes_or_hangs(tmp_path):
    counts = run(tmp_path, FILES, 0)
    print(counts)
    assert min(counts["read"], counts["warned"], counts["refused"]) > FILES // 20
