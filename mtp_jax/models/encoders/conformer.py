"""The speech encoder: strided convolutions over log-mel frames, then Conformer blocks.

Padding is invisible: it is zeroed wherever a convolution could reach it and masked in attention.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Encoder, RopeScaling
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.attention import attend
from mtp_jax.models.layers import (
    Dropout,
    LayerNorm,
    Linear,
    parameter,
    remat,
    rotary_frequencies,
    rotate,
    zero_padding,
)
from mtp_jax.models.mixed_precision import along_rows


def frames_mask(length: jax.Array, frames: int) -> jax.Array:
    """bool[B, frames], True where a frame is real."""
    return jnp.arange(frames) < length[:, None]


class StridedConvolution(nn.Module):
    """A one-dimensional convolution whose kernel is a whole number of strides wide.

    It is a matrix product over neighbouring blocks of stacked frames, which is what accelerators
    and CPUs do fastest. An output frame is real if the block it is centred on holds a real frame.

    Attributes:
        features: output channels.
        stride: input frames a output frame advances by.
        blocks: kernel width in strides.
    """

    features: int
    stride: int
    blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, frames, width = x.shape
        x = zero_padding(x, frames_mask(length, frames))
        x = jnp.pad(x, ((0, 0), (0, -frames % self.stride), (0, 0)))
        x = x.reshape(rows, -1, self.stride * width)
        left = (self.blocks - 1) // 2
        padded = jnp.pad(x, ((0, 0), (left, self.blocks - 1 - left), (0, 0)))
        x = jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(self.blocks)], axis=-1)
        # Frames that SpecAugment masks are all zero: with a bias of zero the LayerNorm behind would
        # amplify their gradient by 1 / sqrt(epsilon) in the first steps.
        x = Linear(self.features, (None, "embed"), True, self.dtype, bias_std=0.1, name="linear")(x)
        return x, -(-length // self.stride)


class FeedForward(nn.Module):
    """Two linear layers with SiLU between them, behind a LayerNorm.

    Attributes:
        features: F.
        dtype: of activations.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = nn.silu(Linear(self.features, ("embed", "mlp"), True, self.dtype, name="up")(x))
        x = constrain(x, "batch", None, "mlp")
        return Linear(width, ("mlp", "embed"), True, self.dtype, name="down")(x)


class SelfAttention(nn.Module):
    """Bidirectional attention over real frames, positions by rotation (Li et al., 2021)."""

    config: Encoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        heads, (rows, frames, width) = self.config.heads, x.shape
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = Linear(3 * width, ("embed", "heads"), True, self.dtype, name="qkv")(x)
        q, k, v = jnp.split(x.reshape(rows, frames, 3 * heads, width // heads), 3, axis=2)
        positions = jnp.arange(frames)[None]
        frequencies, _ = rotary_frequencies(width // heads, 10_000.0, RopeScaling())
        q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        y = attend(q, k, v, real).reshape(rows, frames, width)
        return Linear(width, ("heads", "embed"), True, self.dtype, name="output")(y)


def depthwise(x: jax.Array, taps: jax.Array) -> jax.Array:
    """Convolves every channel of `x` [B, T, C] with its own `taps` [K, C], zeros at both ends."""
    kernel, frames = len(taps), x.shape[1]
    x = jnp.pad(x, ((0, 0), (kernel // 2, kernel // 2), (0, 0)))
    # A sum of shifted products, which XLA fuses into one pass.
    shifted = [x[:, i : i + frames] for i in range(kernel)]
    products = [y * along_rows(taps[i], y.shape, y.dtype) for i, y in enumerate(shifted)]
    return functools.reduce(jnp.add, products)


class Convolution(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution, behind a LayerNorm.

    The normalisation inside is LayerNorm, not BatchNorm as in the Conformer paper: it keeps no
    running statistics, and one row never depends on another.
    """

    config: Encoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        kernel, width = self.config.kernel, x.shape[-1]
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = nn.glu(Linear(2 * width, ("embed", "mlp"), True, self.dtype, name="gate")(x))
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=())
        taps = parameter(self, "depthwise", init, (None, "norm"), (kernel, width))
        x = depthwise(zero_padding(x, real), taps)
        x = nn.silu(LayerNorm(dtype=self.dtype, name="depthwise_norm")(x))
        return Linear(width, ("mlp", "embed"), True, self.dtype, name="output")(x)


class Block(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm."""

    config: Encoder
    dtype: jnp.dtype
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, None]:
        c, hidden = self.config, self.config.feedforward * x.shape[-1]
        drop = Dropout(c.dropout, self.deterministic)

        def add(x: jax.Array, y: jax.Array) -> jax.Array:
            return constrain(x + y, "batch", None, None)

        x = constrain(x, "batch", None, None)
        x = add(x, 0.5 * drop(FeedForward(hidden, self.dtype, name="feedforward_1")(x)))
        x = add(x, drop(SelfAttention(c, self.dtype, name="attention")(x, real)))
        x = add(x, drop(Convolution(c, self.dtype, name="convolution")(x, real)))
        x = add(x, 0.5 * drop(FeedForward(hidden, self.dtype, name="feedforward_2")(x)))
        return constrain(LayerNorm(dtype=self.dtype, name="norm")(x), "batch", None, None), None


class Conformer(nn.Module):
    """Conformer encoder (Gulati et al., 2020)."""

    config: Encoder
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: jax.Array, length: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes log-mel features.

        Args:
            features: [B, T, Z]; frames at or beyond `length` may hold anything.
            length: int32[B] real frames.
            deterministic: False drops residual branches at ``config.dropout``.

        Returns:
            [B, ceil(T / product of strides), D] and its int32[B] lengths.
        """
        c, x = self.config, features.astype(self.dtype)
        for i, stride in enumerate(c.subsampling):
            convolution = StridedConvolution(
                c.width, stride, c.subsampling_kernel, self.dtype, name=f"subsampling_{i}"
            )
            x, length = convolution(x, length)
            x = constrain(x, "batch", None, None)
            x = nn.silu(x) if i + 1 < len(c.subsampling) else x
        real = frames_mask(length, x.shape[1])
        x = LayerNorm(dtype=self.dtype, name="subsampling_norm")(zero_padding(x, real))
        stack = nn.scan(
            remat(Block, c),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=1 if c.scan_layers else c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(c, self.dtype, deterministic, name="blocks")(x, real)
        return x, length
