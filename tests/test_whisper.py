"""Whisper's encoder: convolutions equal to XLA's, padding and neighbours invisible.

That it equals the reference implementation is tested with the importers, on its weights.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Config, ConfigError, Data, FrontEnd, Whisper
from mtp_jax.models.encoders.whisper import WhisperEncoder, _neighbours, encoded_length, sinusoids

CONFIG = Whisper(width=8, layers=2, heads=2, positions=20)
B, T, Z = 4, 21, 5
LENGTHS = np.array([21, 12, 1, 0])


def features(frames: int = T, padding: float = np.nan) -> np.ndarray:
    """The same real frames whatever `frames` and `padding`."""
    x = np.full((B, frames, Z), padding, np.float32)
    real = np.random.default_rng(2).normal(size=(B, T, Z))
    for row, length in enumerate(LENGTHS):
        x[row, :length] = real[row, :length]
    return x


@functools.cache
def params():
    shapes = nn.unbox(
        jax.eval_shape(WhisperEncoder(CONFIG).init, jax.random.key(0), features(), LENGTHS)
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.2, 0.3, s.shape).astype(np.float32), shapes)


@jax.jit
def encode(x, length):
    return WhisperEncoder(CONFIG).apply(params(), x, length)


def real(x):
    return [np.asarray(x[row, : encoded_length(n)]) for row, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [6, 7])
def test_convolution_is_a_convolution(stride, frames):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 4, 6)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    actual = _neighbours(jnp.asarray(x), stride) @ kernel.reshape(12, 6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_padding_and_neighbours_change_nothing():
    whole, length = encode(features(), LENGTHS)
    np.testing.assert_array_equal(length, [11, 6, 1, 0])
    assert np.isfinite(whole).all()
    longer, _ = encode(features(30, padding=7.0), LENGTHS)
    for row, (ours, other) in enumerate(zip(real(whole), real(longer), strict=True)):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)
        alone, _ = encode(features()[row : row + 1], LENGTHS[row : row + 1])
        np.testing.assert_allclose(ours, alone[0, : len(ours)], rtol=1e-5, atol=1e-5)


def test_the_position_table():
    table = sinusoids(1500, 512)
    assert table.shape == (1500, 512) and table.dtype == np.float32
    np.testing.assert_array_equal(table[0], [0.0] * 256 + [1.0] * 256)
    np.testing.assert_allclose(table[7, [0, 255, 256, 511]], [np.sin(7), 7e-4, np.cos(7), 1], 1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Whisper(width=10, layers=1, heads=4), r"config\.whisper\.width \(10\)"),
        (lambda: Config(whisper=CONFIG), r"config\.front_end\.flavour"),
        (
            lambda: Config(
                whisper=CONFIG, front_end=FrontEnd("whisper"), data=Data(bucket_seconds=(0.5,))
            ),
            r"config\.data\.bucket_seconds \(0\.5 at most\)",
        ),
    ],
)
def test_what_it_cannot_be(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
