"""Whisper's speech encoder (Radford et al., 2022): two convolutions, then pre-norm blocks.

It runs on windows of 30 s padded with silence, as it was trained, or on the true length of each
row: then padding is zeroed wherever a convolution could reach it and masked in attention.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import RopeScaling, Whisper
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.attention import attend
from mtp_jax.models.encoders.conformer import frames_mask
from mtp_jax.models.layers import LayerNorm, Linear, rotary_frequencies, rotate, zero_padding

Count = TypeVar("Count", int, jax.Array)

_WHOLE = ("batch", None, None)  # axes of what a layer hands on
_gelu = functools.partial(jax.nn.gelu, approximate=False)


def encoded_length(frames: Count) -> Count:
    """Frames that Whisper makes of as many log-mel frames: one of two."""
    return -(-frames // 2)


def sinusoids(positions: int, width: int) -> np.ndarray:
    """float32[positions, width] positions: sines, then cosines, of frequencies from 1 to 1e-4."""
    frequency = np.exp(-np.log(10_000.0) / (width // 2 - 1) * np.arange(width // 2))
    angle = np.arange(positions)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def _neighbours(x: jax.Array, stride: int) -> jax.Array:
    """[B, ceil(T / stride), 3 D]: each frame with the one before and the one after it."""
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + frames : stride] for i in range(3)], axis=-1)


def _rotated(x: jax.Array, rotary: int) -> jax.Array:
    """[B, T, N, H], the first `rotary` features of each head rotated by their position."""
    frequencies, _ = rotary_frequencies(rotary, 10_000.0, RopeScaling())
    rotated = rotate(x[..., :rotary], jnp.arange(x.shape[1])[None], frequencies)
    return jnp.concatenate([rotated, x[..., rotary:]], axis=-1)


class Block(nn.Module):
    """Attention and a GELU layer, each behind a LayerNorm and added to its input.

    Attributes:
        config: sizes.
        dtype: of activations.
        key_bias: whether keys have a bias, as Whisper's have not.
        rotary: features of each head of queries and keys that turn with their position (Su et al.,
            2021); none of Whisper's do.
    """

    config: Whisper
    dtype: jnp.dtype
    key_bias: bool = False
    rotary: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, None]:
        c, (rows, frames, width) = self.config, x.shape
        linear = functools.partial(Linear, dtype=self.dtype, lora=c.lora)

        def project(name: str, bias: bool) -> jax.Array:
            z = linear(width, ("embed", "heads"), bias, name=name)(y)
            return z.reshape(rows, frames, c.heads, width // c.heads)

        y = LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        q, k, v = project("query", True), project("key", self.key_bias), project("value", True)
        if self.rotary:
            q, k = (_rotated(z, self.rotary) for z in (q, k))
        y = attend(q, k, v, real).reshape(rows, frames, width)
        x = constrain(x + linear(width, ("heads", "embed"), True, name="output")(y), *_WHOLE)
        y = LayerNorm(dtype=self.dtype, name="feedforward_norm")(x)
        y = _gelu(linear(4 * width, ("embed", "mlp"), True, name="up")(y))
        y = constrain(y, "batch", None, "mlp")
        return constrain(x + linear(width, ("mlp", "embed"), True, name="down")(y), *_WHOLE), None


def run_blocks(
    config: Whisper,
    dtype: jnp.dtype,
    x: jax.Array,
    real: jax.Array,
    key_bias: bool = False,
    rotary: int = 0,
) -> jax.Array:
    """Runs the blocks of the module that calls over `x` [B, T, D], of which bool[B, T] are real."""
    stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = stack(config, dtype, key_bias, rotary, name="blocks")(x, real)
    return x


class WhisperEncoder(nn.Module):
    """From log-mel frames to 50 hidden states a second.

    Attributes:
        config: sizes.
        dtype: of activations.
        rotary: as in `Block`, in place of the table of positions.
    """

    config: Whisper
    dtype: jnp.dtype = jnp.float32
    rotary: int = 0

    @nn.compact
    def __call__(self, features: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes log-mel features.

        Args:
            features: [B, T, Z] with T at most twice ``config.positions``; frames at or beyond
                `length` may hold anything.
            length: int32[B] real frames.

        Returns:
            [B, ceil(T / 2), D] and its int32[B] lengths.
        """
        c = self.config
        x = zero_padding(features.astype(self.dtype), frames_mask(length, features.shape[1]))
        linear = functools.partial(Linear, c.width, (None, "embed"), True, self.dtype)
        x = _gelu(linear(name="convolution_1")(_neighbours(x, 1)))
        x = zero_padding(x, frames_mask(length, x.shape[1]))
        x = _gelu(linear(name="convolution_2")(_neighbours(x, 2)))
        length = encoded_length(length)
        real = frames_mask(length, x.shape[1])
        if not self.rotary:
            x = x + sinusoids(c.positions, c.width)[: x.shape[1]].astype(self.dtype)
        x = constrain(zero_padding(x, real), *_WHOLE)
        x = run_blocks(c, self.dtype, x, real, rotary=self.rotary)
        return LayerNorm(dtype=self.dtype, name="norm")(x), length
