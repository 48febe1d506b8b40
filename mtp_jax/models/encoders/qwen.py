"""Qwen3-ASR's audio encoder: strided convolutions over chunks, then attention within windows.

Chunks of a second go through three convolutions by themselves, and positions restart in each. What
is left of them stands side by side, and attention sees windows of several chunks (8 s). Source:
transformers' ``modeling_qwen3_asr.py``.
"""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import AudioEncoder, Whisper
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.encoders.conformer import frames_mask
from mtp_jax.models.encoders.whisper import run_blocks, sinusoids
from mtp_jax.models.layers import LayerNorm, Linear, parameter, zero_padding
from mtp_jax.models.mixed_precision import along_rows

Count = TypeVar("Count", int, jax.Array)
_CONVOLUTIONS = 3


def chunk_positions(frames: Count) -> Count:
    """Positions that the convolutions make of the frames of a chunk: each leaves one of two."""
    for _ in range(_CONVOLUTIONS):
        frames = -(-frames // 2)
    return frames


def encoded_positions(frames: Count, chunk: int) -> Count:
    """Positions that become of as many frames, which are cut into chunks."""
    return frames // chunk * chunk_positions(chunk) + chunk_positions(frames % chunk)


class StridedConvolution(nn.Module):
    """A convolution of 3 x 3 and stride 2 over time and frequency, and GELU.

    Attributes:
        features: output channels.
        dtype: of the product.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ceil(T / 2), ceil(Z / 2), features] of [N, T, Z, channels]."""
        channels = x.shape[-1]
        init, shape = nn.initializers.lecun_normal(), (9 * channels, self.features)
        kernel = parameter(self, "kernel", init, (None, "embed"), shape).astype(self.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), shape[1:])
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.reshape(3, 3, channels, self.features),  # time, frequency
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.gelu(y + along_rows(bias, y.shape, y.dtype), approximate=False)


class QwenEncoder(nn.Module):
    """From log-mel frames to 13 hidden states per second.

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: AudioEncoder
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes log-mel features.

        Args:
            features: [B, T, Z]; frames at or beyond `length` may hold anything.
            length: int32[B] real frames.

        Returns:
            [B, T', D] and its int32[B] lengths.
        """
        c, (rows, frames, bins) = self.config, features.shape
        x = zero_padding(features.astype(self.dtype), frames_mask(length, frames))
        x = jnp.pad(x, ((0, 0), (0, -frames % c.chunk), (0, 0))).reshape(-1, c.chunk, bins, 1)
        for i in range(_CONVOLUTIONS):
            x = StridedConvolution(c.channels, self.dtype, name=f"convolution_{i + 1}")(x)
        each = x.shape[1]
        x = jnp.swapaxes(x, 2, 3).reshape(-1, each, c.channels * x.shape[2])
        x = Linear(c.width, (None, "embed"), dtype=self.dtype, name="input")(x)
        x = (x + sinusoids(each, c.width).astype(self.dtype)).reshape(rows, -1, c.width)
        length = encoded_positions(length, c.chunk)
        total, window = x.shape[1], c.window // c.chunk * each
        x = jnp.pad(x, ((0, 0), (0, -total % window), (0, 0)))
        real = frames_mask(length, x.shape[1])
        x = constrain(zero_padding(x, real), "batch", None, None)
        x = run_blocks(
            Whisper(width=c.width, layers=c.layers, heads=c.heads),
            self.dtype,
            x.reshape(-1, window, c.width),
            real.reshape(-1, window),
            key_bias=True,
        )
        x = x.reshape(rows, -1, c.width)[:, :total]
        return LayerNorm(dtype=self.dtype, name="norm")(x), length
