"""Layers against their definitions, written out in plain Python."""

import cmath
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import RopeScaling
from mtp_jax.models.layers import (
    Dropout,
    LayerNorm,
    Linear,
    RMSNorm,
    rotary_frequencies,
    rotate,
    zero_padding,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_linear_is_a_product_and_a_bias():
    x, kernel, bias = normal(2, 3, 4), normal(4, 5), normal(5)
    layer = Linear(5, (None, None), bias=True)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, x @ kernel + bias, rtol=1e-5, atol=1e-6)
    without = Linear(5, (None, None)).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(without, x @ kernel, rtol=1e-5, atol=1e-6)


def test_norms_are_their_definitions_and_ignore_the_scale_of_their_input():
    x, scale, bias = 3 * normal(4, 8) + 1, normal(8), normal(8)
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale
    centred = wide - wide.mean(-1, keepdims=True)
    layer = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * scale + bias
    for module, params, expected in (
        (RMSNorm(), {"scale": scale}, rms),
        (LayerNorm(), {"scale": scale, "bias": bias}, layer),
    ):
        y = module.apply({"params": params}, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        scaled = module.apply({"params": params}, 1000 * x)
        np.testing.assert_allclose(scaled, y, rtol=1e-3, atol=1e-4)


def test_norms_work_in_float32_whatever_comes_in():
    x = jnp.asarray(normal(2, 256) + 100, jnp.bfloat16)  # bfloat16 steps are 0.5 at 100
    scale = np.ones(256, np.float32)
    for module, params in (
        (RMSNorm(dtype=jnp.bfloat16), {"scale": scale}),
        (LayerNorm(dtype=jnp.bfloat16), {"scale": scale, "bias": 0 * scale}),
    ):
        y = module.apply({"params": params}, x)
        wide = module.clone(dtype=jnp.float32).apply({"params": params}, x)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def dropped(rate: float, width: int, key: int = 0, dtype: str = "float32") -> jax.Array:
    x = jnp.full((40, 50, width), 2.0, dtype)
    return Dropout(rate, False).apply({}, x, rngs={"dropout": jax.random.key(key)})


@pytest.mark.parametrize("width", [1, 7, 32])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_dropout_drops_a_share_and_keeps_the_mean(rate, width):
    y = dropped(rate, width)
    kept = max(1, 256 - round(256 * rate)) / 256
    assert set(np.unique(y)) == {0.0, np.float32(2 / kept)}
    deviation = np.sqrt(kept * (1 - kept) / y.size)
    assert abs(np.mean(y != 0) - kept) < 4 * deviation
    by_feature = np.mean(np.asarray(y) != 0, axis=(0, 1))
    assert (abs(by_feature - kept) < 5 * np.sqrt(kept * (1 - kept) / 2000)).all()


def test_dropout_drops_each_feature_by_itself():
    """Four features share a random word."""
    gone = (np.asarray(dropped(0.5, 32)) == 0).reshape(-1, 32)
    together = np.corrcoef(gone.T) - np.eye(32)
    assert abs(together).max() < 5 / np.sqrt(len(gone))
    assert (dropped(0.5, 32) != dropped(0.5, 32, key=1)).any()


def test_dropout_leaves_all_where_it_should():
    x = jnp.asarray(normal(2, 3, 5))
    for module in (Dropout(0.5, True), Dropout(0.0, False), Dropout(0.001, False)):
        np.testing.assert_array_equal(module.apply({}, x), x)
    assert dropped(0.1, 8, dtype="bfloat16").dtype == jnp.bfloat16


def test_zero_padding_removes_nan_and_its_gradient():
    x = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.inf]]])
    real = jnp.array([[True, False]])
    np.testing.assert_array_equal(zero_padding(x, real), [[[1, 2], [0, 0]]])
    gradient = jax.grad(lambda x: jnp.sum(zero_padding(x, real) ** 2))(x)
    np.testing.assert_array_equal(gradient, [[[2, 4], [0, 0]]])


def plain_frequencies(
    head_size: int, theta: float, scaling: RopeScaling
) -> tuple[list[float], float]:
    """The definitions of Hugging Face's modeling_rope_utils, a pair of features at a time."""
    frequencies = []
    for pair in range(head_size // 2):
        frequency = theta ** (-2 * pair / head_size)
        wavelength = 2 * math.pi / frequency
        if scaling.kind == "linear":
            frequency /= scaling.factor
        if scaling.kind == "llama3":
            longest_kept = scaling.original_length / scaling.high_freq_factor
            shortest_slowed = scaling.original_length / scaling.low_freq_factor
            if wavelength > shortest_slowed:
                frequency /= scaling.factor
            elif wavelength >= longest_kept:
                smooth = scaling.original_length / wavelength - scaling.low_freq_factor
                smooth /= scaling.high_freq_factor - scaling.low_freq_factor
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        if scaling.kind == "yarn":
            bounds = [
                head_size
                * math.log(scaling.original_length / (beta * 2 * math.pi))
                / (2 * math.log(theta))
                for beta in (scaling.beta_fast, scaling.beta_slow)
            ]
            low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), head_size - 1)
            high = high + 0.001 if low == high else high
            ramp = min(max((pair - low) / (high - low), 0), 1)
            frequency = ramp * frequency / scaling.factor + (1 - ramp) * frequency
        frequencies.append(frequency)
    sharpening = 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" else 1.0
    return frequencies, sharpening


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 8.0, original_length=8192),
        RopeScaling("llama3", 32.0, 64, low_freq_factor=0.5, high_freq_factor=2.0),
        RopeScaling("yarn", 4.0, original_length=4096),
        RopeScaling("yarn", 16.0, original_length=64, beta_fast=8.0, beta_slow=0.5),
        RopeScaling("yarn", 2.0, original_length=6),  # an empty band
    ],
    ids=lambda s: f"{s.kind}-{s.original_length}",
)
@pytest.mark.parametrize(("head_size", "theta"), [(64, 10_000.0), (12, 500_000.0)])
def test_rotary_frequencies_are_those_of_hugging_face(scaling, head_size, theta):
    frequencies, factor = rotary_frequencies(head_size, theta, scaling)
    expected, expected_factor = plain_frequencies(head_size, theta, scaling)
    np.testing.assert_allclose(frequencies, expected, rtol=2e-5)
    assert factor == pytest.approx(expected_factor)


def test_rotate_turns_each_pair_as_a_complex_number():
    heads, head_size, factor = 2, 6, 1.25
    x, positions = normal(1, 3, heads, head_size), np.array([[0, 5, 1000]])
    frequencies = np.array([1.0, 0.3, 0.01], np.float32)
    y = np.asarray(rotate(x, positions, frequencies, factor))
    for s, position in enumerate(positions[0]):
        for head in range(heads):
            for i, frequency in enumerate(frequencies):
                pair = complex(x[0, s, head, i], x[0, s, head, i + 3])
                turned = pair * cmath.exp(1j * float(frequency) * int(position)) * factor
                got = complex(y[0, s, head, i], y[0, s, head, i + 3])
                assert got == pytest.approx(turned, abs=3e-4)  # float32 angles up to 1000


def test_rotated_products_depend_on_the_distance_alone():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8)
    frequencies, _ = rotary_frequencies(8, 10_000.0, RopeScaling())

    def product(q_position: int, k_position: int) -> float:
        turned_q = rotate(q, jnp.array([[q_position]]), frequencies)
        turned_k = rotate(k, jnp.array([[k_position]]), frequencies)
        return float(jnp.sum(turned_q * turned_k))

    near = product(7, 4)
    assert product(107, 104) == pytest.approx(near, abs=1e-4)
    assert product(3, 0) == pytest.approx(near, abs=1e-5)
    assert product(8, 4) != pytest.approx(near, abs=1e-2)
    assert product(0, 0) == pytest.approx(float(np.sum(q * k)), abs=1e-5)


def test_rotate_computes_angles_in_float32():
    x = jnp.asarray(normal(1, 1, 1, 8), jnp.bfloat16)
    frequencies, _ = rotary_frequencies(8, 10_000.0, RopeScaling())
    y = rotate(x, jnp.array([[1001]]), frequencies)  # 1001 is no bfloat16 number
    wide = rotate(x.astype(jnp.float32), jnp.array([[1001]]), frequencies)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
