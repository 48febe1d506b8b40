"""Parity of the log-mel features with their references, and the laws of both halves.

`tests/golden/make_features.py` says where the golden values come from.
"""

import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.audio import log_mel as features
from mtp_jax.config import Augment, FrontEnd

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "features.npz")
KALDI, WHISPER, GRANITE = map(FrontEnd, ("kaldi", "whisper", "granite"))
EACH = pytest.mark.parametrize("front_end", [KALDI, WHISPER, GRANITE], ids=lambda f: f.flavour)
WINDOW = 400

# float32 against float64. Kaldi's own arithmetic is float32 too, and has about this error.
WHISPER_TOLERANCE = 5e-5  # of values that span 2
KALDI_TOLERANCE = 2e-3  # nepers, that is 0.2 % of an energy

log_mel = jax.jit(features.log_mel, static_argnames="front_end")
spec_augment = jax.jit(features.spec_augment, static_argnames="augment")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=2000, size=samples).astype(np.int16)


def batch_of(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of noise, float32 so that the padding can be NaN."""
    audio = np.full((len(lengths), max(lengths) + 777), np.nan, np.float32)
    for row, length in enumerate(lengths):
        audio[row, :length] = noise(length, seed=row)
    return audio, np.array(lengths, np.int32)


# --- parity ---


def test_whisper_equals_transformers_on_the_waveform_alone():
    audio = GOLDEN["audio"]
    result, length = log_mel(audio[None], np.array([len(audio)]), front_end=WHISPER)
    assert length.tolist() == [len(GOLDEN["whisper_true"])]
    np.testing.assert_allclose(result[0], GOLDEN["whisper_true"], rtol=0, atol=WHISPER_TOLERANCE)


def test_whisper_equals_transformers_on_a_window_of_30_seconds():
    window = np.zeros((1, 30 * 16_000), np.int16)
    window[0, : len(GOLDEN["audio"])] = GOLDEN["audio"]
    result, length = log_mel(window, np.array([window.shape[1]]), front_end=WHISPER)
    assert length.tolist() == [3000]
    golden = GOLDEN["whisper_window"]
    np.testing.assert_allclose(result[0, : len(golden)], golden, rtol=0, atol=WHISPER_TOLERANCE)
    np.testing.assert_allclose(
        result[0, len(golden) :], golden[-1, 0], rtol=0, atol=WHISPER_TOLERANCE
    )


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_whisper_filters_equal_transformers(mel_bins):
    filters = features._slaney_filters(WINDOW, mel_bins)
    np.testing.assert_allclose(filters, GOLDEN[f"whisper_filters_{mel_bins}"], atol=1e-8)


@pytest.mark.parametrize(("mel_bins", "sample_rate"), [(80, 16_000), (23, 8_000)])
def test_kaldi_fbank_equals_kaldi(mel_bins, sample_rate):
    front_end = FrontEnd("kaldi", mel_bins, sample_rate)
    result = features.kaldi_fbank(GOLDEN["audio"][None], front_end)
    golden = GOLDEN[f"kaldi_{mel_bins}"]
    np.testing.assert_allclose(result[0], golden, rtol=0, atol=KALDI_TOLERANCE)


# --- lengths ---


@EACH
@hypothesis.given(samples=st.integers(0, 5000))
@hypothesis.settings(max_examples=50, deadline=None)
def test_feature_length_counts_windows_and_is_the_same_for_every_kind_of_number(front_end, samples):
    frames = features.feature_length(samples, front_end)
    assert type(frames) is int
    starts = range(0, samples, 160)
    if front_end.flavour == "kaldi":
        assert frames == sum(start + WINDOW <= samples for start in starts)
    elif samples >= WINDOW:
        assert frames == samples // 160 + (front_end is GRANITE)
    else:
        assert frames == 0
    for array in (np.array([samples], np.int32), jnp.array([samples], jnp.int32)):
        result = features.feature_length(array, front_end)
        assert type(result) is type(array) and result.dtype == np.int32
        assert result.tolist() == [frames]


@EACH
def test_features_have_the_promised_shape_and_type(front_end):
    for width in (0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 1000):
        audio = jnp.zeros((2, width), jnp.int16)
        length = jnp.array([width, 0])
        result, frames = jax.eval_shape(lambda a, n: log_mel(a, n, front_end), audio, length)
        assert result.shape == (2, features.feature_length(width, front_end), 80)
        assert (result.dtype, frames.dtype) == (np.float32, np.int32)


# --- rows alone ---


@EACH
def test_a_row_is_computed_as_if_alone(front_end):
    """The padding is NaN, so that nothing of it can have had a part."""
    audio, length = batch_of(WINDOW, 559, 560, 3333)
    result, frames = log_mel(audio, length, front_end=front_end)
    for row, samples in enumerate(length):
        alone, _ = log_mel(audio[row : row + 1, :samples], length[row : row + 1], front_end)
        assert frames[row] == alone.shape[1]
        np.testing.assert_allclose(result[row, : frames[row]], alone[0], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(result[row, frames[row] :], 0)


@EACH
def test_rows_shorter_than_a_window_have_no_frames_and_are_0(front_end):
    audio, length = batch_of(0, 1, 200, 201, WINDOW - 1, 2000)
    result, frames = log_mel(audio, length, front_end=front_end)
    assert frames[:-1].tolist() == [0] * 5 and frames[-1] > 0
    np.testing.assert_array_equal(result[:-1], 0)
    assert np.isfinite(result).all()


@EACH
def test_int16_and_floats_on_its_scale_agree(front_end):
    audio, length = noise(2000)[None], np.array([2000])
    whole, _ = log_mel(audio, length, front_end)
    floats, _ = log_mel(audio.astype(np.float32), length, front_end)
    np.testing.assert_array_equal(whole, floats)


# --- normalisation ---


def test_normalized_features_have_mean_0_and_variance_1_over_real_frames():
    audio, length = batch_of(8000, 4000)
    result, frames = log_mel(audio, length, front_end=KALDI)
    for row in range(2):
        real = np.asarray(result[row, : frames[row]])
        np.testing.assert_allclose(real.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(real.var(axis=0), 1, atol=1e-3)


def test_normalized_features_do_not_depend_on_loudness():
    audio, length = batch_of(8000)
    quiet, _ = log_mel(audio, length, front_end=KALDI)
    loud, _ = log_mel(4 * audio, length, front_end=KALDI)
    np.testing.assert_allclose(quiet, loud, atol=1e-3)


@EACH
def test_digital_silence_is_constant(front_end):
    result, _ = log_mel(np.zeros((1, 4000), np.int16), np.array([4000]), front_end=front_end)
    np.testing.assert_array_equal(result, 0.0 if front_end is KALDI else -1.5)


def test_whisper_is_refused_at_another_rate():
    with pytest.raises(ValueError, match=r"config\.front_end\.sample_rate \(8000\) must be 16000"):
        features.log_mel(np.zeros((1, 800)), np.array([800]), FrontEnd("whisper", 80, 8_000))


@EACH
def test_gradients_are_finite(front_end):
    audio, length = batch_of(0, 300, 4000, 4000)
    audio = np.nan_to_num(audio)
    audio[3] = 0

    def total(audio):
        result, frames = features.log_mel(audio, length, front_end)
        return jnp.sum(features.spec_augment(jax.random.key(0), result, frames, Augment()) ** 2)

    gradient = jax.jit(jax.grad(total))(audio)
    assert np.isfinite(gradient).all() and gradient[2].any()


# --- SpecAugment ---

B, T, Z = 4, 60, 16
LENGTH = np.array([60, 33, 9, 0], np.int32)
ONES = np.ones((B, T, Z), np.float32)


def one_mask(**limits) -> Augment:
    nothing = {"freq_masks": 0, "time_masks": 0}
    return Augment(**(nothing | limits))


def masked_by(augment: Augment, keys: int = 400) -> np.ndarray:
    """bool[keys, B, T, Z], True where masked."""
    draw = jax.vmap(lambda key: spec_augment(key, ONES, LENGTH, augment=augment))
    return np.asarray(draw(jax.random.split(jax.random.key(0), keys)) == 0)


def is_one_span(masked: np.ndarray) -> np.ndarray:
    """Whether the True values along the last axis stand side by side."""
    edges = np.diff(np.pad(masked.astype(int), [(0, 0)] * (masked.ndim - 1) + [(1, 1)]))
    return (edges == 1).sum(axis=-1) <= 1


@pytest.mark.parametrize(
    "limits",
    [{}, {"freq_masks": 2, "freq_width": 0}, {"time_masks": 2, "time_width": 0}],
)
def test_no_masks_change_nothing(limits):
    values = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)
    result = spec_augment(jax.random.key(0), values, LENGTH, augment=one_mask(**limits))
    np.testing.assert_array_equal(result, values)


def test_what_is_not_masked_is_left_as_it_is():
    values = np.random.default_rng(0).normal(size=ONES.shape).astype(np.float32)
    result = np.asarray(spec_augment(jax.random.key(0), values, LENGTH, augment=Augment()))
    assert ((result == values) | (result == 0)).all() and (result == 0).any()


@pytest.mark.parametrize("limit", [5, Z, 3 * Z])
def test_a_frequency_mask_is_a_span_of_bins_as_wide_as_any_up_to_its_limit(limit):
    masked = masked_by(one_mask(freq_masks=1, freq_width=limit))
    row = masked[:, 0]
    assert (row == row[:, :1]).all()  # all frames alike
    bins = row[:, 0]
    assert is_one_span(bins).all()
    limit = min(limit, Z)
    assert set(bins.sum(axis=1)) == set(range(limit + 1))
    assert bins.sum(axis=1).mean() == pytest.approx(limit / 2, rel=0.1)
    assert bins.any(axis=0).all()  # every bin is within reach


def test_a_time_mask_is_a_span_of_frames_within_both_limits():
    masked = masked_by(one_mask(time_masks=1, time_width=12, time_fraction=0.3))
    assert (masked == masked[..., :1]).all()  # all bins alike
    frames = masked[..., 0]
    assert is_one_span(frames).all()
    for row, limit in enumerate([12, 9, 2, 0]):  # 0.3 of 60 is 18, of 33 is 9.9, of 9 is 2.7
        widths = frames[:, row].sum(axis=1)
        assert set(widths) == set(range(limit + 1))
        assert widths.mean() == pytest.approx(limit / 2, rel=0.1)
        assert frames[:, row, : LENGTH[row]].any(axis=0).all()  # every frame is within reach


def test_the_masks_of_one_row_may_lie_anywhere_relative_to_each_other():
    masked = masked_by(one_mask(time_masks=3, time_width=4, time_fraction=1.0))[:, 0, :, 0]
    assert masked.sum(axis=1).max() > 8 and not is_one_span(masked).all()
    assert masked.sum(axis=1).max() <= 12


def test_padding_is_never_touched():
    values = np.where(np.arange(T)[:, None] < LENGTH[:, None, None], 1.0, np.nan)
    values = np.broadcast_to(values, ONES.shape).astype(np.float32)
    result = spec_augment(jax.random.key(0), values, LENGTH, augment=Augment())
    np.testing.assert_array_equal(np.isnan(result), np.isnan(values))


def test_masks_are_a_function_of_key_row_and_length_only():
    augment = Augment(time_fraction=0.5)
    key = jax.random.key(3)
    whole = np.asarray(spec_augment(key, ONES, LENGTH, augment=augment))
    again = spec_augment(key, ONES, LENGTH, augment=augment)
    np.testing.assert_array_equal(whole, again)
    other_key = spec_augment(jax.random.key(4), ONES, LENGTH, augment=augment)
    assert (whole != np.asarray(other_key)).any()
    fewer_and_shorter = spec_augment(key, ONES[:2, :40], np.array([5, 33]), augment=augment)
    np.testing.assert_array_equal(fewer_and_shorter[1], whole[1, :40])
    assert (whole[0, :30] != whole[1, :30]).any()  # rows are drawn apart


def test_the_masked_share_is_what_the_limits_imply():
    """Means of one uniform width each: 8 / 2 of 16 bins, and 12 / 2 of 60 frames."""
    masked = masked_by(
        Augment(freq_masks=1, freq_width=8, time_masks=1, time_width=12, time_fraction=1.0)
    )
    expected = 1 - (1 - 4 / 16) * (1 - 6 / 60)
    assert masked[:, 0].mean() == pytest.approx(expected, rel=0.05)
