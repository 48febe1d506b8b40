"""Granite-speech's encoder: Conformer blocks, attention within windows, CTC in the middle.

Two log-mel frames stand side by side. Half way up, the CTC head's own posteriors are added to the
states (self-conditioned CTC, Nozaki and Komatsu, 2021). Source: transformers'
``modeling_granite_speech.py``. Padding is invisible: it is zeroed wherever a convolution could
reach it and masked in attention.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import AudioEncoder
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.encoders.conformer import FeedForward, depthwise, frames_mask
from mtp_jax.models.layers import LayerNorm, Linear, parameter, zero_padding
from mtp_jax.models.mixed_precision import along_rows

_WHOLE = ("batch", None, None)  # axes of what a layer hands on


class WindowedAttention(nn.Module):
    """Attention within windows, positions as embeddings of distances (Shaw et al., 2018).

    The score of a query q and a key k, i and j places into a window, is q (k + e[i - j]).

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: AudioEncoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        c, (rows, frames, width) = self.config, x.shape
        window, size = c.window // c.chunk, c.head_size or c.width // c.heads
        linear = functools.partial(Linear, dtype=self.dtype)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.pad(x, ((0, 0), (0, -frames % window), (0, 0)))
        real = jnp.pad(real, ((0, 0), (0, -frames % window))).reshape(-1, window)

        def project(name: str) -> jax.Array:
            y = linear(c.heads * size, ("embed", "heads"), name=name)(x)
            return y.reshape(-1, window, c.heads, size)

        q, k, v = project("query"), project("key"), project("value")
        init, shape = nn.initializers.normal(0.02), (2 * c.distances + 1, size)
        table = parameter(self, "distance_embedding", init, (None, None), shape)
        place = jnp.arange(window)
        distances = table[place[:, None] - place + c.distances].astype(self.dtype)
        bias = jnp.einsum("bqnh,qkh->bnqk", q, distances, preferred_element_type=jnp.float32)
        y = jax.nn.dot_product_attention(
            q, k, v, bias=bias * size**-0.5, mask=real[:, None, None, :]
        )
        y = y.reshape(rows, -1, c.heads * size)[:, :frames]
        return linear(width, ("heads", "embed"), True, name="output")(y)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) by the statistics of training, in float32.

    Attributes:
        dtype: of what comes out.
        epsilon: added to the variance.
    """

    dtype: jnp.dtype
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        starts = {"scale": ones, "bias": zeros, "mean": zeros, "variance": ones}
        shape = x.shape[-1:]
        scale, bias, mean, variance = (
            parameter(self, name, init, ("norm",), shape).astype(jnp.float32)
            for name, init in starts.items()
        )
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        factor, offset = (
            along_rows(y, x.shape, jnp.float32) for y in (factor, bias - mean * factor)
        )
        return (x * factor + offset).astype(self.dtype)


class Convolution(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution, behind a LayerNorm.

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: AudioEncoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        c, width = self.config, x.shape[-1]
        channels = c.expansion * width
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        x = nn.glu(Linear(2 * channels, ("embed", "mlp"), True, self.dtype, name="gate")(x))
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=())
        taps = parameter(self, "depthwise", init, (None, "norm"), (c.kernel, channels))
        x = depthwise(zero_padding(x, real), taps)
        x = nn.silu(BatchNorm(self.dtype, name="depthwise_norm")(x))
        return Linear(width, ("mlp", "embed"), True, self.dtype, name="output")(x)


class Block(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, LayerNorm.

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: AudioEncoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, None]:
        c = self.config

        def add(x: jax.Array, y: jax.Array) -> jax.Array:
            return constrain(x + y, *_WHOLE)

        x = constrain(x, *_WHOLE)
        x = add(x, 0.5 * FeedForward(c.feedforward, self.dtype, name="feedforward_1")(x))
        x = add(x, WindowedAttention(c, self.dtype, name="attention")(x, real))
        x = add(x, Convolution(c, self.dtype, name="convolution")(x, real))
        x = add(x, 0.5 * FeedForward(c.feedforward, self.dtype, name="feedforward_2")(x))
        return constrain(LayerNorm(dtype=self.dtype, name="norm")(x), *_WHOLE), None


class GraniteEncoder(nn.Module):
    """From log-mel frames to 50 hidden states per second.

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: AudioEncoder
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c = self.config

        def blocks(count: int) -> nn.Module:
            stack = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=count,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return stack(c, self.dtype)

        self.input = Linear(c.width, (None, "embed"), True, self.dtype)
        self.lower = blocks(c.layers // 2)
        self.upper = blocks(c.layers - c.layers // 2)
        self.ctc = Linear(c.labels, ("embed", None), True, self.dtype)
        self.condition = Linear(c.width, (None, "embed"), True, self.dtype)

    def __call__(self, features: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes log-mel features.

        Args:
            features: [B, T, Z]; frames at or beyond `length` may hold anything.
            length: int32[B] real frames; one that is left without a second is left out.

        Returns:
            [B, floor(T / 2), D] and its int32[B] lengths.
        """
        stacked, (rows, frames, bins) = self.config.chunk, features.shape
        count = frames // stacked
        x = features[:, : count * stacked].reshape(rows, count, stacked * bins)
        length = length // stacked
        real = frames_mask(length, count)
        x = self.input(zero_padding(x.astype(self.dtype), real))
        x, _ = self.lower(x, real)
        posteriors = jax.nn.softmax(self.ctc_logits(x)).astype(self.dtype)
        x, _ = self.upper(x + self.condition(posteriors), real)
        return x, length

    def ctc_logits(self, x: jax.Array) -> jax.Array:
        """float32[B, T, labels] of the CTC head at states [B, T, D]."""
        logits: jax.Array = self.ctc(x).astype(jnp.float32)
        return logits
