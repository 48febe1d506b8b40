"""Recordings as files of many kinds, for tests."""

from __future__ import annotations

import fractions
import pathlib

import av
import numpy as np
import soundfile

from mtp_jax.audio.reading import audio_blocks, audio_seconds, read_audio

RATE = 16_000


def tone(hertz: float, seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float64[T, channels]."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.tile(wave[:, None], channels)


def write(path: pathlib.Path, samples: np.ndarray, rate: int = RATE, subtype: str = "") -> bytes:
    """Writes what libsndfile writes, by the suffix; returns the bytes."""
    suffix = path.suffix[1:]
    kind, usual = {
        "opus": ("OGG", "OPUS"),
        "ogg": ("OGG", "VORBIS"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "rifx": ("WAV", "PCM_16"),
    }.get(suffix, (suffix.upper(), "PCM_16"))
    channels = samples.reshape(len(samples), -1).shape[1]
    options = {"format": kind, "subtype": subtype or usual}
    if suffix == "rifx":
        options["endian"] = "BIG"
    with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
        for start in range(0, len(samples), 10_000):  # long Vorbis overflows libsndfile's stack
            file.write(samples[start : start + 10_000])
    return path.read_bytes()


def encode(
    path: pathlib.Path, samples: np.ndarray, rate: int, codec: str, container: str | None = None
) -> bytes:
    """Writes what FFmpeg writes; returns the bytes."""
    channels = samples.shape[1]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        if bit_rate := {"wmav2": 64_000, "libopencore_amrnb": 12_200}.get(codec):
            stream.bit_rate = bit_rate  # these have no default
        frame = av.AudioFrame.from_ndarray(
            np.rint(32767 * samples).astype(np.int16).reshape(1, -1), "s16", layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, fractions.Fraction(1, rate)
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return path.read_bytes()


def read(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    """int16[T] and the warnings; all ways to read agree."""
    said: list[str] = []
    waveform = read_audio(path, RATE, warn=said.append)
    again: list[str] = []
    blocks = np.concatenate(list(audio_blocks(path, RATE, warn=again.append)))
    of_bytes = read_audio(path.read_bytes(), RATE, name=str(path), warn=again.append)
    np.testing.assert_array_equal(blocks, waveform)
    np.testing.assert_array_equal(of_bytes, waveform)
    assert again == 2 * said
    assert said or abs(audio_seconds(path) - len(waveform) / RATE) < 2 / RATE + 1e-3
    return waveform, said


def pitch(waveform: np.ndarray) -> float:
    """Hz of the strongest sine."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * RATE / len(waveform))
