"""Whisper's encoder: convolutions equal to XLA's, and what it cannot be.

That padding and neighbours change nothing is tested in `test_contracts`; that it equals the
reference implementation with the importers, on its weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Config, ConfigError, Data, FrontEnd, Whisper
from mtp_jax.models.encoders.whisper import _neighbours, encoded_length, sinusoids

CONFIG = Whisper(width=8, layers=2, heads=2, positions=20)
B, T, Z = 4, 21, 5
LENGTHS = np.array([21, 12, 1, 0])


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


def test_two_frames_make_one():
    np.testing.assert_array_equal(encoded_length(np.array([21, 12, 1, 0])), [11, 6, 1, 0])


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
