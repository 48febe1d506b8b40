"""Learned queries that look at windows of hidden states (the Q-Former of BLIP-2, Li et al., 2023).

Source: transformers' ``modeling_granite_speech.py`` and ``modeling_blip_2.py``.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Projector
from mtp_jax.models.attention import attend
from mtp_jax.models.encoders.conformer import frames_mask
from mtp_jax.models.layers import LayerNorm, Linear, parameter, zero_padding

Count = TypeVar("Count", int, jax.Array)
_EPSILON = 1e-12  # BERT's, of every norm


def projected_rows(states: Count, config: Projector) -> Count:
    """Rows that become of as many states: those of the queries, of each window that is begun."""
    return -(-states // config.window) * config.queries


class Attention(nn.Module):
    """Attention to other states or the same, added to its input, and a LayerNorm behind that.

    Attributes:
        heads: of attention.
        dtype: of activations.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, states: jax.Array) -> jax.Array:
        width = x.shape[-1]
        linear = functools.partial(Linear, bias=True, dtype=self.dtype)

        def project(name: str, y: jax.Array) -> jax.Array:
            z = linear(width, ("embed", "heads"), name=name)(y)
            return z.reshape(*y.shape[:2], self.heads, width // self.heads)

        q, k, v = project("query", x), project("key", states), project("value", states)
        y = attend(q, k, v, jnp.ones(states.shape[:2], bool)).reshape(x.shape)
        y = linear(width, ("heads", "embed"), name="output")(y)
        return LayerNorm(_EPSILON, self.dtype, name="norm")(x + y)


class Layer(nn.Module):
    """Queries look at each other, then at the states, then a GELU layer: each as `Attention` does.

    Attributes:
        config: sizes.
        dtype: of activations.
    """

    config: Projector
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, states: jax.Array) -> tuple[jax.Array, None]:
        c = self.config
        x = Attention(c.heads, self.dtype, name="self_attention")(x, x)
        x = Attention(c.heads, self.dtype, name="cross_attention")(x, states)
        linear = functools.partial(Linear, bias=True, dtype=self.dtype)
        y = jax.nn.gelu(linear(c.feedforward, ("embed", "mlp"), name="up")(x), approximate=False)
        y = linear(c.width, ("mlp", "embed"), name="down")(y)
        return LayerNorm(_EPSILON, self.dtype, name="norm")(x + y), None


class QFormerProjector(nn.Module):
    """The projector of Granite-speech.

    Attributes:
        config: sizes.
        features: of a row of the prompt.
        dtype: of activations.
    """

    config: Projector
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projects hidden states.

        Args:
            x: [B, T, D]; what lies beyond `length` reaches no real row.
            length: int32[B]; the last window is filled up with zeros, which are looked at.

        Returns:
            [B, R, features] with R = ``projected_rows(T, config)``, and their int32[B] numbers.
        """
        c, (batch, frames, width) = self.config, x.shape
        x = zero_padding(x, frames_mask(length, frames))
        x = jnp.pad(x, ((0, 0), (0, -frames % c.window), (0, 0)))
        states = x.reshape(-1, c.window, width)
        shape, init = (1, c.queries, c.width), nn.initializers.normal(1.0)
        queries = parameter(self, "queries", init, (None, None, "embed"), shape)
        y = LayerNorm(_EPSILON, self.dtype, name="norm")(queries)
        y = jnp.broadcast_to(y, (len(states), *shape[1:]))
        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        y, _ = stack(c, self.dtype, name="layers")(y, states)
        y = Linear(self.features, (None, "embed"), True, self.dtype, name="output")(y)
        return y.reshape(batch, -1, self.features), projected_rows(length, c)
