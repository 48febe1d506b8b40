"""What `mtp_jax.audio.reading` promises of files, rates, channels, levels and speeds."""

import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile

from mtp_jax.audio.reading import (
    AudioError,
    audio_seconds,
    change_speed,
    changed_length,
    read_audio,
)

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
    path = write(tmp_path / "b.wav", np.stack([left // 2, -(left // 2)], axis=1))
    assert not read_audio(path, RATE).any()


def test_levels_round_to_the_nearest_step_and_saturate(tmp_path):
    steps = np.array([-9e4, -32769, -32768, -1.6, -0.4, 0.4, 1.6, 32767, 32768, 1e42])
    soundfile.write(tmp_path / "a.wav", steps / 32768, RATE, subtype="FLOAT")
    expected = [-32768, -32768, -32768, -2, 0, 0, 2, 32767, 32767, 32767]
    assert read_audio(tmp_path / "a.wav", RATE).tolist() == expected


def bad_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """One file of each kind that cannot be read, by a word its message must hold."""
    flac = write(folder / "whole.flac", noise(RATE)).read_bytes()
    wav = write(folder / "whole.wav", noise(RATE)).read_bytes()
    opus = write(folder / "whole.opus", noise(RATE)).read_bytes()
    no_length = bytearray(flac)
    no_length[21] &= 0xF0  # STREAMINFO's total samples: 36 bits, 0 where unknown
    no_length[22:26] = bytes(4)
    endless = bytearray(flac)
    endless[21] |= 0x0F
    endless[22:26] = b"\xff" * 4
    contents = {
        "no_bytes.wav": b"",
        "text.wav": b"this is no audio. " * 50,
        "text.mp3": b"this is no audio. " * 50,
        "headerless.raw": bytes(1000),
        "header_only.wav": wav[:44],
        "header_cut.wav": wav[:20],
        "cut.flac": flac[: len(flac) // 2],
        "no_length.flac": bytes(no_length),
        "endless.flac": bytes(endless),
        "cut.opus": opus[:200],
        "scrambled.flac": flac[:9000] + noise(500).tobytes() + flac[10_000:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write(folder / "no_samples.wav", noise(0))
    write(folder / "no_samples.ogg", noise(0))
    soundfile.write(folder / "nan.wav", np.array([0, np.nan, 0.1]), RATE, subtype="FLOAT")
    infinite = np.array([[0, 0.1], [np.inf, -np.inf]])
    soundfile.write(folder / "inf.wav", infinite, RATE, subtype="FLOAT")
    (folder / "directory.wav").mkdir()
    reasons = {
        "missing.wav": "No such file",
        "directory.wav": "directory",
        "no_bytes.wav": "empty file",
        "text.wav": "libsndfile does not read",
        "text.mp3": "libsndfile does not read",
        "headerless.raw": "libsndfile does not read",
        "header_only.wav": "no samples",
        "header_cut.wav": "libsndfile does not read",
        "cut.flac": "cannot be decoded",
        "no_length.flac": "how long",
        "endless.flac": "cannot be decoded",
        "cut.opus": "libsndfile does not read",
        "scrambled.flac": "cannot be decoded",
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


def test_what_can_be_decoded_of_a_cut_mp3_is_returned(tmp_path):
    path = write(tmp_path / "a.mp3", sine(440, RATE, seconds=2))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert RATE / 2 < len(read_audio(path, RATE)) < 3 * RATE / 2


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
