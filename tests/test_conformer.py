"""The encoder: convolutions equal to XLA's, scanning and recomputation invisible.

That padding and neighbours change nothing is tested in `test_contracts`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Encoder
from mtp_jax.models.encoders.conformer import (
    Conformer,
    Convolution,
    StridedConvolution,
    frames_mask,
)
from tests.contracts import draw_params, quick_jit

CONFIG = Encoder(
    subsampling=(2, 2),
    subsampling_kernel=3,
    width=8,
    layers=2,
    heads=2,
    feedforward=2,
    kernel=5,
)
B, T, Z = 4, 22, 5
LENGTHS = np.array([22, 13, 1, 0])
RNG = np.random.default_rng(0)


@functools.cache
def params():
    return draw_params(Conformer(CONFIG), features(), LENGTHS)


def features(frames: int = T, padding: float = np.nan) -> np.ndarray:
    """The same real frames whatever `frames` and `padding`."""
    x = np.full((B, frames, Z), padding, np.float32)
    real = np.random.default_rng(2).normal(size=(B, T, Z))
    for row, length in enumerate(LENGTHS):
        x[row, :length] = real[row, :length]
    return x


@jax.jit
def encode(x, length):
    return Conformer(CONFIG).apply({"params": params()}, x, length)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_strided_convolution_is_a_convolution(blocks):
    stride, frames, width, out = 3, 14, 4, 6
    x = RNG.normal(size=(2, frames, width)).astype(np.float32)
    kernel = RNG.normal(size=(blocks * stride, width, out)).astype(np.float32)
    bias = RNG.normal(size=out).astype(np.float32)
    before = (blocks - 1) // 2 * stride
    after = (blocks - 1) * stride - before + -frames % stride
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(before, after)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    linear = {"kernel": kernel.reshape(-1, out), "bias": bias}
    module = StridedConvolution(out, stride, blocks, jnp.float32)
    y, length = module.apply({"params": {"linear": linear}}, x, np.array([frames, frames]))
    np.testing.assert_allclose(y, expected + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(length, [5, 5])


def test_depthwise_convolution_is_a_grouped_convolution():
    x = RNG.normal(size=(1, 9, CONFIG.width)).astype(np.float32)
    module, real = Convolution(CONFIG, jnp.float32), np.ones((1, 9), bool)
    p = draw_params(module, x, real)

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    gate = norm(x, p["norm"]) @ p["gate"]["kernel"] + p["gate"]["bias"]
    gated = nn.glu(gate)
    convolved = jax.lax.conv_general_dilated(
        gated,
        p["depthwise"][:, None],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=CONFIG.width,
    )
    y = nn.silu(norm(convolved, p["depthwise_norm"]))
    expected = y @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(module.apply({"params": p}, x, real), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(4, 2), (2, 3), (1, 5)])
def test_lengths_are_rounded_up(strides):
    """After several convolutions as after one of all their strides, down to a length of 0."""
    product = int(np.prod(strides))
    frames = 2 * product + 1
    lengths = np.arange(frames + 1)
    x = np.ones((len(lengths), frames, 1), np.float32)
    for stride in strides:
        linear = {"kernel": np.ones((stride, 1), np.float32), "bias": np.zeros(1, np.float32)}
        layer = StridedConvolution(1, stride, 1, jnp.float32)
        x, lengths = layer.apply({"params": {"linear": linear}}, x, lengths)
    assert x.shape[1] == lengths[-1] == 3
    np.testing.assert_array_equal(lengths, [-(-n // product) for n in range(frames + 1)])
    # Ones summed over real frames alone: every one of them is counted once.
    np.testing.assert_array_equal(jnp.sum(x, axis=(1, 2)), np.arange(frames + 1))


def test_every_frame_sees_every_other():
    first, _ = encode(features(padding=0.0), LENGTHS)
    changed = features(padding=0.0)
    changed[0, -1] += 1
    assert np.all(np.abs(encode(changed, LENGTHS)[0][0] - first[0]).max(-1) > 1e-4)


def test_scan_and_remat_change_neither_outputs_nor_gradients():
    """Dropout included; the gradients of NaN padding and of an empty row are finite."""
    x = features()

    def run(scan_layers: bool, remat: bool, seed: int = 3):
        config = dataclasses.replace(CONFIG, dropout=0.3, scan_layers=scan_layers, remat=remat)

        @quick_jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def loss(params, x, key):
            y, length = Conformer(config).apply(
                {"params": params}, x, LENGTHS, False, rngs={"dropout": key}
            )
            real = frames_mask(length, y.shape[1])
            return jnp.sum(jnp.where(real[..., None], y, 0) ** 3), y

        def at(seed: int):
            (_, y), gradients = loss(params(), x, jax.random.key(seed))
            return y, gradients

        return at

    plain = run(False, False)
    expected, gradients = plain(3)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    padding = ~np.asarray(frames_mask(LENGTHS, T))
    assert not np.any(gradients[1][padding])
    assert np.all(np.any(gradients[1] != 0, -1)[~padding])
    np.testing.assert_array_equal(plain(3)[0], expected)
    assert np.max(np.abs(plain(4)[0] - expected)) > 0.1
    y, got = run(True, True)(3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    jax.tree.map(close, got, gradients)


def test_bfloat16_is_near_float32():
    expected, length = encode(features(), LENGTHS)
    model = Conformer(CONFIG, jnp.bfloat16)
    y, _ = jax.jit(model.apply)({"params": params()}, features(), LENGTHS)
    assert y.dtype == jnp.bfloat16
    real = np.asarray(frames_mask(length, y.shape[1]))
    error = np.sqrt(np.mean((y[real].astype(jnp.float32) - expected[real]) ** 2))
    assert error < 0.05 * np.sqrt(np.mean(expected[real] ** 2))
