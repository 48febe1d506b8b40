"""Layers that encoder and decoder share."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mtp_jax.config import Decoder, Encoder, Lora, RopeScaling
from mtp_jax.models.mixed_precision import along_rows, matmul, matmul_transposed

PRODUCT = "product"  # the name by which `remat` knows the outputs of matrix products
TRANSPOSED = "transposed_kernel"  # in place of a kernel, by `decoders.layout.for_decoding`
Module = TypeVar("Module", bound=nn.Module)
Axes = tuple[str | None, ...]
Initializer = nn.initializers.Initializer


def parameter(
    module: nn.Module, name: str, init: Initializer, axes: Axes, shape: tuple[int, ...]
) -> jax.Array:
    """A parameter of `module`, annotated with the logical names of its axes."""
    return cast(jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape))


_zeros = nn.initializers.zeros


class Linear(nn.Module):
    """x @ kernel (+ bias), the kernel annotated with its logical axes.

    Attributes:
        features: size of the output axis.
        axes: logical names of the kernel's (input, output) axes.
        bias: whether a bias is added.
        dtype: of the product.
        bias_std: standard deviation that the bias starts with.
        lora: low-rank update added to the kernel; it starts at zero.
    """

    features: int
    axes: Axes
    bias: bool = False
    dtype: jnp.dtype = jnp.float32
    bias_std: float = 0.0
    lora: Lora = Lora()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, x = (x.shape[-1], self.features), x.astype(self.dtype)
        if self.has_variable("params", TRANSPOSED):
            y = matmul_transposed(x, self.get_variable("params", TRANSPOSED)).astype(self.dtype)
        else:
            kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), self.axes, shape)
            y = matmul(x, kernel)
        if rank := self.lora.rank:
            (into, out), (random, zeros) = self.axes, (nn.initializers.lecun_normal(), _zeros)
            a = parameter(self, "lora_a", random, (into, None), (shape[0], rank))
            b = parameter(self, "lora_b", zeros, (None, out), (rank, shape[1]))
            y += matmul(matmul(x, a), b) * (self.lora.alpha / rank)
        if self.bias:
            init = nn.initializers.normal(self.bias_std)
            bias = parameter(self, "bias", init, self.axes[-1:], (self.features,))
            y += along_rows(bias, y.shape, y.dtype)
        return checkpoint_name(y, PRODUCT)


def remat(module: type[Module], config: Encoder | Decoder) -> type[Module]:
    """`module`, recomputed in the backward pass as `config` says."""
    if not config.remat:
        return module
    kept = None if config.remat_products else jax.checkpoint_policies.save_only_these_names(PRODUCT)
    again: type[Module] = nn.remat(module, prevent_cse=not config.scan_layers, policy=kept)
    return again


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019), in float32."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, ("norm",), x.shape[-1:])
        x = x.astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * along_rows(scale, x.shape, x.dtype)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., 2016), in float32."""

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, ("norm",), x.shape[-1:])
        bias = parameter(self, "bias", nn.initializers.zeros, ("norm",), x.shape[-1:])
        x = x.astype(jnp.float32)
        x -= jnp.mean(x, axis=-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (along_rows(y, x.shape, x.dtype) for y in (scale, bias))
        return (x * scale + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Sets a share of the features to zero, and makes up for it in the others.

    One random word decides on four features, as drawing them takes longer than all else about it:
    the share is a whole number of 256ths.

    Attributes:
        rate: the share, of which the nearest such number is taken.
        deterministic: whether nothing is dropped.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kept = max(1, 256 - round(256 * self.rate))
        if self.deterministic or kept == 256:
            return x
        *rows, width = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*rows, -(-width // 4)), jnp.uint32)
        quarters = [(words >> (8 * i)) & 255 for i in range(4)]
        keeps = jnp.concatenate([quarter < kept for quarter in quarters], axis=-1)[..., :width]
        return jnp.where(keeps, x * (256 / kept), jnp.zeros((), x.dtype))


def zero_padding(x: jax.Array, real: jax.Array) -> jax.Array:
    """`x` [B, S, D] with the positions where `real` [B, S] is False set to 0, NaN included."""
    return jnp.where(real[..., None], x, jnp.zeros((), x.dtype))


def rotary_frequencies(
    head_size: int, theta: float, scaling: RopeScaling
) -> tuple[jax.Array, float]:
    """Angles a position turns each pair of features by, and the factor on queries and keys.

    The scaling variants are those of Hugging Face's ``rope_scaling``: "linear" (position
    interpolation, Chen et al., 2023), "llama3" (Llama 3.1) and "yarn" (Peng et al., 2023,
    which also sharpens attention by the factor returned).

    Returns:
        float32[H / 2] radians a position, and the factor (1 except for yarn).
    """
    exponent = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    frequency = 1.0 / theta**exponent
    slowed = frequency / scaling.factor
    if scaling.kind == "none":
        return frequency, 1.0
    if scaling.kind == "linear":
        return slowed, 1.0
    if scaling.kind == "llama3":
        rotations = scaling.original_length * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = jnp.clip((rotations - low) / (high - low), 0, 1)
        return keep * frequency + (1 - keep) * slowed, 1.0

    def pair_with(rotations: float) -> float:
        """Index of the feature pair that turns `rotations` times over the original length."""
        period = scaling.original_length / (rotations * 2 * math.pi)
        return head_size * math.log(period) / (2 * math.log(theta))

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), head_size - 1)
    ramp = (jnp.arange(head_size // 2, dtype=jnp.float32) - first) / max(last - first, 1e-3)
    keep = 1 - jnp.clip(ramp, 0, 1)
    return keep * frequency + (1 - keep) * slowed, 0.1 * math.log(scaling.factor) + 1.0


def rotate(
    x: jax.Array, positions: jax.Array, frequencies: jax.Array, factor: float = 1.0
) -> jax.Array:
    """Rotary position embedding (Su et al., 2021), halves paired as Hugging Face's LLaMA does.

    Args:
        x: [B, S, heads, H].
        positions: int32[B, S], or int32[1, S] if all rows have the same.
        frequencies: float32[H / 2], radians a position.
        factor: multiplies the result (yarn).
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
