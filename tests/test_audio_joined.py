"""Files of several recordings, and of headers that fall short: all of it is read, or it is said."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError, read_audio, refuse
from tests.audio_files import RATE, encode, pitch, read, tone, write

PCM = ["wav", "rifx", "aiff", "caf", "w64", "rf64", "au"]
SOUNDFILE = [*PCM, "flac", "ogg", "opus", "mp3"]
FFMPEG = {"m4a": "aac", "mka": "libopus", "webm": "libopus", "aac": "aac"}


def made(folder, name: str, samples: np.ndarray, rate: int) -> bytes:
    path = folder / name
    codec = FFMPEG.get(path.suffix[1:])
    return encode(path, samples, rate, codec) if codec else write(path, samples, rate)


@pytest.mark.parametrize("suffix", [*SOUNDFILE, *FFMPEG])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (24_000, 2)])
def test_recordings_one_behind_another_are_all_read(tmp_path, suffix, rate, channels):
    usual = 48_000 if suffix in ("mka", "webm") else RATE
    if suffix in ("mka", "webm") and rate == RATE:
        rate = usual
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(
        made(tmp_path, f"a.{suffix}", tone(500, 2, usual), usual)
        + made(tmp_path, f"b.{suffix}", tone(1500, 1, rate, channels), rate)
        + made(tmp_path, f"c.{suffix}", tone(900, 2, usual), usual)
    )
    found, said = read(path)
    assert said == []
    assert len(found) / RATE == pytest.approx(5, abs=0.001 if suffix in PCM else 0.35)
    assert pitch(found[RATE // 2 : RATE]) == pytest.approx(500, abs=20)
    middle = round(len(found) / 2)
    assert pitch(found[middle - RATE // 8 : middle + RATE // 8]) == pytest.approx(1500, abs=20)
    assert pitch(found[-RATE:]) == pytest.approx(900, abs=20)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "m4a", "mp3"])
def test_parts_over_a_seam_are_slices_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"joined.{suffix}"
    content = made(tmp_path, f"a.{suffix}", tone(500, 2), RATE)
    path.write_bytes(content + made(tmp_path, f"b.{suffix}", tone(900, 2), RATE))
    whole = read_audio(path, RATE)
    for offset, duration in [(0.5, 1.0), (1.5, 1.5), (2.5, 1.0), (3.0, None), (0.0, 9.0)]:
        part = read_audio(path, RATE, offset, duration)
        start = round(offset * RATE)
        stop = len(whole) if duration is None else start + round(duration * RATE)
        assert abs(len(part) - len(whole[start:stop])) <= 1
        np.testing.assert_allclose(part[:-1], whole[start:stop][: len(part) - 1], atol=1)
    with pytest.raises(AudioError, match="s long, so that nothing is left after an offset"):
        read_audio(path, RATE, offset=5.0)


def test_a_chain_of_ogg_may_change_its_codec(tmp_path):
    path = tmp_path / "chain.ogg"
    path.write_bytes(
        write(tmp_path / "a.ogg", tone(500, 2))
        + write(tmp_path / "b.opus", tone(1500, 2, 48_000, 2), 48_000)
        + write(tmp_path / "c.ogg", tone(900, 2, 8000), 8000)
    )
    found, said = read(path)
    assert said == []
    assert len(found) / RATE == pytest.approx(6, abs=0.05)
    for hertz, second in ((500, 1), (1500, 3), (900, 5)):
        assert pitch(found[second * RATE :][: RATE // 2]) == pytest.approx(hertz, abs=20)


@pytest.mark.parametrize(("first", "second"), [("wav", "flac"), ("m4a", "wav"), ("ogg", "wav")])
def test_kinds_may_change(tmp_path, first, second):
    path = tmp_path / f"joined.{first}"
    content = made(tmp_path, f"a.{first}", tone(500, 2), RATE)
    path.write_bytes(content + made(tmp_path, f"b.{second}", tone(900, 2), RATE))
    found, said = read(path)
    assert said or len(found) / RATE == pytest.approx(4, abs=0.2)
    assert said == [] or "bytes" in said[0]


@pytest.mark.parametrize("suffix", [*PCM, "flac", "ogg", "opus", "m4a"])
def test_behind_a_recording_that_was_cut_off_the_next_is_read(tmp_path, suffix):
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, (20 * RATE, 1))
    first = made(tmp_path, f"a.{suffix}", noise, RATE)
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(first[: len(first) // 2] + made(tmp_path, f"b.{suffix}", tone(900, 2), RATE))
    found, said = read(path)
    assert pitch(found[-RATE:]) == pytest.approx(900, abs=20)
    assert len(said) == 1
    if suffix == "m4a":  # its index comes last: nothing of the first can be read
        assert re.search(r"holds \d+ bytes, from byte 0, that are no audio", said[0])
    else:
        seconds = len(found) / RATE
        assert seconds == pytest.approx(12, abs=2)
        assert f"{seconds - 2:.1f} s were read" in said[0]
    with pytest.raises(AudioError):
        read_audio(path, RATE, warn=refuse)


def with_length(content: bytes, suffix: str, samples: int) -> bytes:
    """A PCM file whose header says another number of bytes, or 0 or less for what means unknown."""
    data = bytearray(content)
    length = samples * 2
    if suffix == "flac":
        data[21] = data[21] & 0xF0
        data[22:26] = struct.pack(">I", max(samples, 0))
        return bytes(data)
    at, form, extra = {
        "wav": (data.find(b"data") + 4, "<I", 0),
        "rifx": (data.find(b"data") + 4, ">I", 0),
        "rf64": (data.find(b"ds64") + 16, "<Q", 0),
        "w64": (data.find(b"data\xf3") + 16, "<Q", 24),
        "aiff": (data.find(b"SSND") + 4, ">I", 8),
        "caf": (data.find(b"data") + 4, ">Q", 4),
        "au": (8, ">I", 0),
    }[suffix]
    unknown = {"au": 0xFFFFFFFF, "caf": 2**64 - 1}.get(suffix, 0)
    value = length + extra if samples > 0 else unknown
    struct.pack_into(form, data, at, value)
    if suffix == "aiff":
        struct.pack_into(">I", data, data.find(b"COMM") + 10, max(samples, 0))
    if suffix in ("wav", "rifx", "aiff"):
        struct.pack_into(form, data, 4, value + 36 if samples > 0 else 0)
    return bytes(data)


@pytest.mark.parametrize("suffix", [*PCM, "flac"])
@pytest.mark.parametrize("seconds", [0, 1])
def test_a_header_that_falls_short_does_not_cut_the_recording(tmp_path, suffix, seconds):
    samples = np.random.default_rng(0).integers(-9000, 9000, 5 * RATE).astype(np.int16)
    path = tmp_path / f"stale.{suffix}"
    path.write_bytes(with_length(write(path, samples), suffix, seconds * RATE))
    found, said = read(path)
    assert said == []
    np.testing.assert_array_equal(found, samples)


def chunk(name: bytes, content: bytes, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(content)) + content + bytes(len(content) % 2)


TAGS = {
    "ID3v1": b"TAG" + bytes(range(65, 190)),
    "ID3v2": b"ID3\4\0\0\0\0\x20\0" + b"x" * 4096,
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 3000, 1, 0xA0000000) + bytes(8) + b"y" * 3000,
    "zeros": bytes(70_000),
    "a few bytes": b"the end",
}


@pytest.mark.parametrize("suffix", [*PCM, "flac", "mp3", "m4a"])
@pytest.mark.parametrize("tag", TAGS)
def test_what_players_append_is_no_audio_and_no_loss(tmp_path, suffix, tag):
    path = tmp_path / f"tagged.{suffix}"
    content = made(tmp_path, path.name, tone(500, 2), RATE)
    expected, _ = read(path)
    path.write_bytes(content + TAGS[tag])
    found, said = read(path)
    assert said == []
    if suffix in ("mp3", "m4a"):
        assert abs(len(found) - len(expected)) < 2400
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("odd", [False, True])
def test_chunks_behind_the_samples_are_no_audio(tmp_path, odd):
    samples = np.random.default_rng(0).integers(0, 200, 20_001).astype(np.uint8)
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_U8") as file:
        file.buffer_write((samples.astype(np.int16) << 8).tobytes(), "int16")
    content = path.read_bytes()[: 44 + 20_001]
    chunks = [(b"LIST", b"INFOISFT" + b"q" * 3001), (b"id3 ", TAGS["ID3v2"]), (b"bext", b"z" * 602)]
    chunks += [(b"cue ", b"12345"), (b"_PMX", b"<x/>" * 999), (b"ID3 ", TAGS["ID3v2"])]
    expected, _ = read(path)
    behind = b"".join(chunk(*each) for each in chunks)
    for tail in (behind, behind[:-2000]):  # the last of them cut off
        path.write_bytes(content + (b"" if odd else b"\0") + tail)
        found, said = read(path)
        assert said == []
        np.testing.assert_array_equal(found, expected)


def test_bytes_that_nothing_can_read_are_told(tmp_path):
    path = tmp_path / "a.wav"
    content = write(path, tone(500, 2)) + chunk(b"LIST", b"INFO" + b"q" * 400)
    junk = np.random.default_rng(0).bytes(5000)
    path.write_bytes(content + junk)
    found, [said] = read(path)
    assert len(found) == 2 * RATE
    assert f"holds 5000 bytes, from byte {len(content)}, that are no audio" in said
