"""The bar of the command that transcribes: at once, without decoding, and right at the end."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import soundfile

from mtp_jax.audio import files
from mtp_jax.audio.estimate import estimated_seconds
from mtp_jax.transcription.progress import ProgressBar
from tests.recordings import RATE

NOISE = np.random.default_rng(0).normal(0, 3000, 7 * RATE).astype(np.int16)


@pytest.mark.parametrize(
    ("suffix", "kind", "subtype"),
    [
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_length_is_estimated_without_decoding(tmp_path, monkeypatch, suffix, kind, subtype):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, NOISE, RATE, subtype, format=kind)

    def decoded(*unused: object) -> None:
        raise AssertionError("decoded to learn a length")

    monkeypatch.setattr(files._FFmpeg, "steps", decoded)
    monkeypatch.setattr(soundfile.SoundFile, "read", decoded)
    assert estimated_seconds(path) == pytest.approx(7, abs=0.1)


def test_an_mp3_that_tells_no_length_is_estimated_by_its_bit_rate(tmp_path):
    content = io.BytesIO()
    soundfile.write(content, NOISE, RATE, "MPEG_LAYER_III", format="MP3")
    path = tmp_path / "noise.mp3"
    path.write_bytes(content.getvalue()[2000:])  # without the frame that tells the length
    assert estimated_seconds(path) == pytest.approx(7, rel=0.2)


def test_what_is_no_recording_has_no_length_and_no_complaint(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nhttp://localhost/a.mp3\n")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "nowhere.wav"):
        assert estimated_seconds(path) == 0.0, path


def test_the_bar_ends_at_what_the_recordings_were():
    progress = ProgressBar(30.0)
    with progress.bar as bar:
        progress.advance(12.0)  # of one that was taken for 10 s
        progress.learn(2.0)
        assert (bar.n, bar.total) == (12, 32)
        progress.advance(5.0)  # one of 20 s, it was said
        progress.learn(-15.0)
        assert bar.n == bar.total == 17


def test_the_bar_never_shows_more_than_all():
    progress = ProgressBar(10.0)
    with progress.bar as bar:
        for _ in range(3):
            progress.advance(5.0)
            assert bar.n <= bar.total
        progress.learn(5.0)
        assert bar.n == bar.total == 15
