"""What people's devices and programs write, format by format: length, pitch, and what is said."""

from __future__ import annotations

import fractions
import re
import struct

import av
import numpy as np
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError, read_audio, refuse
from tests.audio_files import RATE, encode, pitch, read, tone, write

SOUNDFILE = ["wav", "rifx", "aiff", "caf", "w64", "rf64", "au", "voc", "nist", "flac", "svx", "sds"]
WAV = ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM"]
WAV += ["GSM610", "G721_32", "NMS_ADPCM_32"]
FFMPEG = [
    ("a.aac", "aac"),
    ("a.ac3", "ac3"),
    ("a.eac3", "eac3"),
    ("a.amr", "libopencore_amrnb"),
    ("amr.3gp", "libopencore_amrnb"),
    ("a.avi", "pcm_s16le"),
    ("a.flv", "aac"),
    ("flac.mka", "flac"),
    ("pcm.mka", "pcm_s16le"),
    ("alac.m4a", "alac"),
    ("a.mp2", "mp2"),
    ("a.mpg", "mp2"),
    ("a.ts", "aac"),
    ("a.tta", "tta"),
    ("a.wma", "wmav2"),
    ("a.wv", "wavpack"),
    ("flac.oga", "flac"),
    ("mp3.wav", "libmp3lame"),
    ("aac.wav", "aac"),
]


def expect(path, seconds: float, hertz: float = 500, tolerance: float = 0.15) -> None:
    found, said = read(path)
    assert said == []
    assert len(found) / RATE == pytest.approx(seconds, abs=tolerance)
    assert pitch(found[len(found) // 4 : 3 * len(found) // 4]) == pytest.approx(hertz, abs=10)


@pytest.mark.parametrize("suffix", SOUNDFILE)
def test_containers_of_libsndfile(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", tone(500, 4))
    expect(tmp_path / f"a.{suffix}", 4, tolerance=0)


@pytest.mark.parametrize("subtype", WAV)
def test_sample_formats_of_wav(tmp_path, subtype):
    path = tmp_path / "a.wav"
    write(path, tone(500, 4), RATE, subtype)
    expect(path, 4, tolerance=0.06)
    whole = read_audio(path, RATE)
    np.testing.assert_array_equal(
        read_audio(path, RATE, offset=1, duration=1), whole[RATE : 2 * RATE]
    )


@pytest.mark.parametrize(("name", "codec"), FFMPEG)
def test_containers_of_ffmpeg(tmp_path, name, codec):
    rate = {"libopencore_amrnb": 8000, "ac3": 48_000, "eac3": 48_000}.get(codec, RATE)
    container = "ogg" if name == "flac.oga" else None
    encode(tmp_path / name, tone(500, 4, rate), rate, codec, container)
    expect(tmp_path / name, 4)


@pytest.mark.parametrize("rate", [6000, 7350, 12_000, 37_800, 44_056, 96_000, 192_000])
def test_odd_rates(tmp_path, rate):
    write(tmp_path / "a.wav", tone(500, 2, rate), rate)
    expect(tmp_path / "a.wav", 2, tolerance=0.001)


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_speech_in_one_of_six_channels_is_heard(tmp_path, suffix):
    samples = np.zeros((2 * RATE, 6))
    samples[:, 2] = tone(500, 2)[:, 0]  # the centre of 5.1
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        write(path, samples)
    else:
        encode(path, samples, RATE, "aac")
    expect(path, 2)
    assert np.abs(read_audio(path, RATE)).max() / 32768 == pytest.approx(0.5 / 6, rel=0.1)


def test_an_inverted_channel_with_some_noise_gives_the_other(tmp_path):
    left, noise = tone(500, 2), np.random.default_rng(0).normal(0, 0.002, (2 * RATE, 2))
    write(tmp_path / "a.wav", np.hstack([left, -left]) + noise)
    found, _ = read(tmp_path / "a.wav")
    assert min(np.abs(found / 32768 - side).max() for side in (left[:, 0], -left[:, 0])) < 0.02


def id3(content: bytes) -> bytes:
    """An ID3v2.3 tag with a picture."""
    body = b"\0image/png\0\3\0" + content
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


@pytest.mark.parametrize("suffix", ["mp3", "wav", "flac"])
def test_pictures_in_tags_are_passed_over(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = write(path, tone(500, 4))
    picture = b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(30_000)
    for tagged in (id3(picture) + content, content + id3(picture)):
        path.write_bytes(tagged)
        expect(path, 4)
    path.write_bytes(2 * (id3(picture) + content))
    expect(path, 8, tolerance=0.2)


def test_a_xing_header_that_counts_too_little_ends_nothing(tmp_path):
    path = tmp_path / "a.mp3"
    content = bytearray(write(path, tone(500, 6)))
    at = max(content.find(b"Info"), content.find(b"Xing"))
    frames = int.from_bytes(content[at + 8 : at + 12], "big")
    content[at + 8 : at + 12] = (frames // 4).to_bytes(4, "big")
    path.write_bytes(content)
    expect(path, 6)


def several(path, streams, video: bool = False) -> None:
    """A file of several streams of AAC; None stands for one without a packet."""
    with av.open(path, "w") as file:
        if video:
            pictures = file.add_stream("mpeg4", rate=24, width=32, height=32)
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        made = [(file.add_stream("aac", rate=RATE, layout="mono"), each) for each in streams]
        if video:
            file.mux([*pictures.encode(picture), *pictures.encode(None)])
        for stream, samples in made:
            if samples is not None:
                steps = np.rint(32767 * samples.T).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(steps, "s16", "mono")
                frame.sample_rate, frame.pts = RATE, 0
                frame.time_base = fractions.Fraction(1, RATE)
                file.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_of_a_video_the_sound_is_read(tmp_path, suffix):
    several(tmp_path / f"a.{suffix}", [tone(500, 4)], video=True)
    expect(tmp_path / f"a.{suffix}", 4)


@pytest.mark.parametrize(("suffix", "empty"), [("mp4", False), ("mkv", False), ("mkv", True)])
def test_of_several_audio_streams_one_is_read_and_the_others_are_named(tmp_path, suffix, empty):
    path = tmp_path / f"a.{suffix}"
    several(path, [None if empty else tone(500, 4), tone(900, 4)])
    found, [said] = read(path)
    assert pitch(found[RATE : 2 * RATE]) == pytest.approx(900 if empty else 500, abs=10)
    assert f"holds 2 audio streams, of which only stream {int(empty)} is read" in said
    with pytest.raises(AudioError, match="2 audio streams"):
        read_audio(path, RATE, warn=refuse)


@pytest.mark.parametrize("kind", [b"drms", b"enca"])
def test_what_is_encrypted_is_refused(tmp_path, kind):
    path = tmp_path / "a.m4a"
    path.write_bytes(encode(path, tone(500, 2), RATE, "aac").replace(b"mp4a", kind))
    with pytest.raises(AudioError, match="is encrypted: get it without copy protection"):
        read_audio(path, RATE)


def test_a_live_recording_of_a_browser_needs_no_length(tmp_path):
    """MediaRecorder writes a segment of unknown size, and no duration."""
    path = tmp_path / "a.webm"
    content = encode(path, tone(500, 4, 48_000), 48_000, "libopus")
    at = content.index(b"\x18\x53\x80\x67") + 4  # Segment
    content = content[:at] + b"\x01" + b"\xff" * 7 + content[at + 8 :]
    content = re.sub(rb"\x44\x89\x88.{8}", b"\xec\x89" + bytes(9), content, count=1, flags=re.S)
    path.write_bytes(content)
    expect(path, 4)
    path.write_bytes(2 * content)
    expect(path, 8, tolerance=0.3)


def test_floats_beyond_1_are_clipped_and_those_of_another_scale_refused(tmp_path):
    for scale in (2**15, 2**23):
        soundfile.write(tmp_path / "a.wav", tone(500, 1) * scale, RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match="on another scale: divide those of int16"):
            read_audio(tmp_path / "a.wav", RATE)
    soundfile.write(tmp_path / "a.wav", tone(500, 1) * 8, RATE, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav", RATE).astype(int)).max() == 32768
