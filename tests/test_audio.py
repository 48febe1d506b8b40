"""What `mtp_jax.audio.reading` promises of files, rates, channels, levels and speeds."""

import pathlib
import re
import subprocess
import sys

import av
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile

from mtp_jax.audio import files
from mtp_jax.audio.reading import (
    AudioError,
    array_blocks,
    audio_blocks,
    audio_seconds,
    change_speed,
    changed_length,
    read_audio,
    refuse,
)
from mtp_jax.audio.waveform import BLOCK_SAMPLES

RATE = 16_000
LOSSLESS = ["wav", "flac"]
LOSSY = ["mp3", "ogg", "opus"]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).integers(-32768, 32768, samples).astype(np.int16)


def sine(hertz: float, rate: int, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def amplitude_at(hertz: float, waveform: np.ndarray) -> tuple[float, float]:
    """Amplitude of the sine of `hertz` that fits best, and the RMS of what it leaves over.

    Both are fractions of full scale. The edges, where filters settle, are left out.
    """
    angle = 2 * np.pi * hertz * np.arange(len(waveform)) / RATE
    inner = slice(len(waveform) // 8, -len(waveform) // 8)
    basis = np.stack([np.sin(angle), np.cos(angle)], axis=1)[inner]
    target = waveform[inner] / 32768
    weights = np.linalg.lstsq(basis, target)[0]
    rest = target - basis @ weights
    return float(np.hypot(*weights)), float(np.sqrt(np.mean(rest**2)))


def write(path: pathlib.Path, samples: np.ndarray, rate: int = RATE) -> pathlib.Path:
    if path.suffix == ".opus":
        soundfile.write(path, samples, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_16_bit_mono_comes_back_bit_for_bit(tmp_path, suffix):
    samples = noise(4000)
    samples[:4] = [-32768, 32767, 0, -1]
    path = write(tmp_path / f"a.{suffix}", samples)
    result = read_audio(path, RATE)
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, samples)


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
def test_every_format_keeps_length_level_and_pitch(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", sine(440, RATE))
    result = read_audio(path, RATE)
    assert len(result) == RATE // 2
    assert audio_seconds(path) == 0.5
    amplitude, rest = amplitude_at(440, result)
    assert amplitude == pytest.approx(0.5, rel=0.02)
    assert rest < 0.01


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
def test_a_part_is_a_slice_of_the_whole(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(RATE) // 4)
    whole = read_audio(path, RATE)
    part = read_audio(path, RATE, offset=0.25, duration=0.5)
    np.testing.assert_array_equal(part, whole[RATE // 4 : 3 * RATE // 4])
    rest = read_audio(path, RATE, offset=0.75, duration=99.0)
    np.testing.assert_array_equal(rest, whole[3 * RATE // 4 :])


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_frequency_amplitude_and_duration(tmp_path, rate):
    path = write(tmp_path / "a.wav", sine(1234.5, rate), rate)
    result = read_audio(path, RATE)
    assert len(result) == pytest.approx(RATE / 2, abs=1)
    assert audio_seconds(path) == pytest.approx(0.5, abs=1 / rate)
    amplitude, rest = amplitude_at(1234.5, result)
    assert amplitude == pytest.approx(0.5, rel=1e-3)
    assert rest < 1e-4


def test_resampling_does_not_fold_high_tones_down(tmp_path):
    result = read_audio(write(tmp_path / "a.wav", sine(10_000, 48_000), 48_000), RATE)
    assert np.abs(result[1000:-1000]).max() <= 1


def test_channels_are_averaged(tmp_path):
    left, middle, right = noise(300), noise(301)[:300], noise(302)[:300]
    path = write(tmp_path / "a.wav", np.stack([left, middle, right], axis=1))
    mean = np.mean([left, middle, right], axis=0)
    assert np.abs(read_audio(path, RATE) - mean).max() <= 0.51  # rounding


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_channels_that_cancel_give_one_of_them(tmp_path, rate):
    left = sine(440, rate, seconds=2)
    path = write(tmp_path / "a.wav", np.stack([left, -left], axis=1), rate)
    expected = read_audio(write(tmp_path / "left.wav", left, rate), RATE)
    np.testing.assert_array_equal(read_audio(path, RATE), expected)
    table = np.rint(32768 * np.stack([left, -left], axis=1)).astype(np.int16)
    of_array = np.concatenate(list(array_blocks(table, rate, RATE)))
    np.testing.assert_allclose(of_array, expected, atol=2)


def test_from_mean_to_one_channel_and_back_there_is_no_click():
    size = BLOCK_SAMPLES // 2
    left = 0.5 * np.sin(2 * np.pi * 125 * np.arange(4 * size) / RATE)
    sign = np.repeat([1, -1, -1, 1], size)  # in phase, inverted, in phase
    sign[2 * size :] = np.repeat([-1, 1], size)
    found = np.concatenate(list(array_blocks(np.stack([left, sign * left], 1), RATE, RATE)))
    np.testing.assert_allclose(
        found[size + 512 : 3 * size], 32768 * left[size + 512 : 3 * size], atol=1
    )
    steepest = 32768 * 0.5 * 2 * np.pi * 125 / RATE
    assert np.abs(np.diff(found.astype(int))).max() < 2 * steepest


def test_levels_round_to_the_nearest_step_and_saturate(tmp_path):
    steps = np.array([-9e4, -32769, -32768, -1.6, -0.4, 0.4, 1.6, 32767, 32768, 5e5])
    soundfile.write(tmp_path / "a.wav", steps / 32768, RATE, subtype="FLOAT")
    expected = [-32768, -32768, -32768, -2, 0, 0, 2, 32767, 32767, 32767]
    assert read_audio(tmp_path / "a.wav", RATE).tolist() == expected


def bad_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """One file of each kind that cannot be read, by a word its message must hold."""
    flac = write(folder / "whole.flac", noise(RATE)).read_bytes()
    wav = write(folder / "whole.wav", noise(RATE)).read_bytes()
    opus = write(folder / "whole.opus", noise(RATE)).read_bytes()
    contents = {
        "no_bytes.wav": b"",
        "text.wav": b"this is no audio. " * 50,
        "text.mp3": b"this is no audio. " * 50,
        "headerless.raw": bytes(1000),
        "header_only.wav": wav[:44],
        "header_cut.wav": wav[:20],
        "no_frame.flac": flac[:200],
        "cut.opus": opus[:200],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write(folder / "no_samples.wav", noise(0))
    write(folder / "no_samples.ogg", noise(0))
    soundfile.write(folder / "nan.wav", np.array([0, np.nan, 0.1]), RATE, subtype="FLOAT")
    infinite = np.array([[0, 0.1], [np.inf, -np.inf]])
    soundfile.write(folder / "inf.wav", infinite, RATE, subtype="FLOAT")
    soundfile.write(folder / "int16_scale.wav", noise(99).astype(float), RATE, subtype="FLOAT")
    with av.open(folder / "video.mp4", "w") as video:
        stream = video.add_stream("mpeg4", rate=24, width=32, height=32)
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        video.mux([*stream.encode(picture), *stream.encode(None)])
    (folder / "directory.wav").mkdir()
    reasons = {
        "missing.wav": "No such file",
        "directory.wav": "directory",
        "no_bytes.wav": "empty file",
        "text.wav": "FFmpeg reads",
        "text.mp3": "FFmpeg reads",
        "headerless.raw": "FFmpeg reads",
        "header_only.wav": "no samples",
        "header_cut.wav": "FFmpeg reads",
        "no_frame.flac": "no samples",
        "cut.opus": "FFmpeg reads",
        "video.mp4": "no audio",
        "int16_scale.wav": "divide those of int16",
        "no_samples.wav": "no samples",
        "no_samples.ogg": "no samples",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
    }
    return {reason + "|" + name: folder / name for name, reason in reasons.items()}


def test_bad_files_are_refused_in_one_sentence_that_names_them(tmp_path):
    for key, path in bad_files(tmp_path).items():
        with pytest.raises(AudioError) as caught:
            read_audio(path, RATE)
        message = str(caught.value)
        assert message.startswith(f"{path} ") and "\n" not in message, message
        assert key.split("|")[0] in message, message
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        try:
            audio_seconds(path)
        except AudioError as error:  # damage behind the header goes unseen, but nothing else
            assert str(error) == message


def test_parts_that_do_not_exist_are_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise(RATE))
    with pytest.raises(AudioError, match="is 1 s long, so that nothing is left after an offset"):
        read_audio(path, RATE, offset=1.0)
    for offset, duration in [(-1.0, None), (0.0, 0.0), (0.0, -2.0)]:
        with pytest.raises(AudioError, match="give an offset of 0 or more"):
            read_audio(path, RATE, offset=offset, duration=duration)
    with pytest.raises(AudioError, match="shorter than one sample at 8 Hz"):
        read_audio(path, 8, duration=1 / RATE)


def warned(path: pathlib.Path) -> tuple[np.ndarray, list[str]]:
    messages: list[str] = []
    waveform = read_audio(path, RATE, warn=messages.append)
    blocks = np.concatenate(list(audio_blocks(path, RATE, warn=messages.append)))
    np.testing.assert_array_equal(blocks, waveform)
    assert messages[::2] == messages[1::2]
    return waveform, messages[::2]


@pytest.mark.parametrize("suffix", [*LOSSLESS, "aiff", *LOSSY])
def test_a_cut_file_gives_what_is_there_and_a_warning(tmp_path, suffix):
    whole = write(
        tmp_path / f"whole.{suffix}", sine(440, RATE, seconds=20) + sine(99, RATE, 20, 0.1)
    )
    expected, said = warned(whole)
    assert said == []
    path = tmp_path / f"cut.{suffix}"
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found, [said] = warned(path)
    seconds = len(found) / RATE
    assert 3 < seconds < 17
    close = len(found) - RATE // 2
    np.testing.assert_allclose(found[:close], expected[:close], atol=1)
    assert said.startswith(f"{path} ") and f"{seconds:.1f} s were read" in said
    if suffix not in ("ogg", "opus"):  # their headers promise nothing
        missing = float(re.search(r"([\d.]+) s are missing", said)[1])
        assert missing + seconds == pytest.approx(20, abs=0.5)
    with pytest.raises(AudioError, match="were read"):
        read_audio(path, RATE, warn=refuse)


def test_without_a_listener_a_warning_is_logged(tmp_path, caplog):
    path = write(tmp_path / "a.wav", noise(RATE * 2))
    path.write_bytes(path.read_bytes()[:RATE])
    read_audio(path, RATE)
    assert [(r.name, r.levelname) for r in caplog.records] == [("mtp_jax", "WARNING")]
    assert "1.5 s are missing" in caplog.text


def without_xing(path: pathlib.Path) -> bytes:
    """An MP3 less the frame that tells its length."""
    with av.open(path) as file:
        return b"".join(bytes(packet) for packet in file.demux(audio=0) if packet.size)


def vbr(path: pathlib.Path, seconds: float) -> pathlib.Path:
    """An MP3 whose first part is so quiet that its bit rate tells nothing of the rest."""
    loud = noise(round(RATE * seconds)) / 40_000
    loud[: len(loud) // 2] *= 0
    soundfile.write(path, loud, RATE, bitrate_mode="VARIABLE", compression_level=0.3)
    return path


def test_a_variable_bit_rate_without_a_header_is_read_to_the_end(tmp_path):
    path = vbr(tmp_path / "a.mp3", 12)
    path.write_bytes(without_xing(path))
    assert soundfile.info(path).duration != pytest.approx(12, abs=2)  # the trap
    found, said = warned(path)
    assert len(found) / RATE == pytest.approx(12, abs=0.15) and said == []
    assert audio_seconds(path) == len(found) / RATE


@pytest.mark.parametrize("suffix", LOSSY)
def test_joined_files_are_read_to_the_end(tmp_path, suffix):
    first = write(tmp_path / f"a.{suffix}", sine(440, RATE, 3))
    second = write(tmp_path / f"b.{suffix}", sine(880, RATE, 2))
    both = tmp_path / f"both.{suffix}"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    found, said = warned(both)
    assert len(found) / RATE == pytest.approx(5, abs=0.3) and said == []
    assert audio_seconds(both) == pytest.approx(len(found) / RATE)
    assert amplitude_at(440, found[: 2 * RATE])[0] == pytest.approx(0.5, rel=0.05)
    assert amplitude_at(880, found[-RATE:])[0] == pytest.approx(0.5, rel=0.05)


def test_lengths_that_were_never_written_do_not_matter(tmp_path):
    samples = noise(3 * RATE)
    flac = bytearray(write(tmp_path / "a.flac", samples).read_bytes())
    flac[21] &= 0xF0  # STREAMINFO's total samples: 36 bits, 0 where unknown
    flac[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(flac)
    wav = bytearray(write(tmp_path / "a.wav", samples).read_bytes())
    for length in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        for at in (4, 40):
            wav[at : at + 4] = length.to_bytes(4, "little")
        (tmp_path / f"{length}.wav").write_bytes(wav)
    for path in [tmp_path / "a.flac", *tmp_path.glob("[0-9]*.wav")]:
        found, said = warned(path)
        np.testing.assert_array_equal(found, samples)
        assert said == [] and audio_seconds(path) == 3


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.3gp", "aac"),
        ("a.webm", "libopus"),
        ("a.mkv", "libopus"),
        ("a.mov", "aac"),
        ("a.aac", "aac"),
        ("a.mpga", "libmp3lame"),
    ],
)
def test_what_telephones_and_browsers_write_is_read(tmp_path, name, codec):
    path, rate = tmp_path / name, 48_000 if codec == "libopus" else RATE
    tone = np.rint(32768 * sine(440, rate, 4)).astype(np.int16)
    with av.open(path, "w", format="mp3" if path.suffix == ".mpga" else None) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.sample_rate = rate
        file.mux([*stream.encode(frame), *stream.encode(None)])
    found, said = warned(path)
    assert said == []
    assert len(found) / RATE == pytest.approx(4, abs=0.2)
    assert amplitude_at(440, found)[0] == pytest.approx(0.5, rel=0.1)


@hypothesis.given(samples=st.integers(0, 3000), factor=st.floats(0.5, 2.0))
@hypothesis.settings(max_examples=50, deadline=None)
def test_a_changed_speed_has_exactly_the_promised_length(samples, factor):
    changed = change_speed(noise(samples), factor)
    assert changed.dtype == np.int16
    assert len(changed) == changed_length(samples, factor) == round(samples / factor)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_a_changed_speed_multiplies_the_pitch_and_keeps_the_level(factor):
    waveform = np.rint(32768 * sine(1000, RATE)).astype(np.int16)
    amplitude, rest = amplitude_at(1000 * factor, change_speed(waveform, factor))
    assert amplitude == pytest.approx(0.5, rel=1e-3)
    assert rest < 1e-4


def test_speed_1_changes_nothing():
    np.testing.assert_array_equal(change_speed(noise(1000), 1.0), noise(1000))


def test_a_louder_peak_between_samples_saturates_instead_of_wrapping():
    square = np.where(np.arange(2000) % 100 < 50, 32767, -32768).astype(np.int16)
    changed = change_speed(square, 0.9)
    assert changed.max() == 32767 and changed.min() == -32768
    assert np.mean(changed > 0) == pytest.approx(0.5, abs=0.02)  # a wrapped peak changes sign


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_impossible_speeds_are_refused(factor):
    with pytest.raises(ValueError, match="choose one above 0"):
        change_speed(noise(10), factor)


def test_data_workers_do_not_load_jax():
    code = "import sys, mtp_jax.audio.reading; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_that_unpacks_to_hours_is_measured_no_further_than_asked(tmp_path, monkeypatch):
    """FLAC without a length in its header, of which decoding alone tells it."""
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(60):
            file.write(np.zeros(60 * RATE, np.int16))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    decoded = []
    steps = files._FFmpeg.steps

    def counted(self):
        for step in steps(self):
            decoded.append(len(step))
            yield step

    monkeypatch.setattr(files._FFmpeg, "steps", counted)
    assert 5 < audio_seconds(path, at_most=5) == sum(decoded) / RATE < 10
    decoded.clear()
    assert audio_seconds(path) == sum(decoded) / RATE == 3600
