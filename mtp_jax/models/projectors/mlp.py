"""Neighbouring hidden states side by side, then two linear layers with GELU between them."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Projector
from mtp_jax.models.layers import Linear


class MlpProjector(nn.Module):
    """The projector of Voxtral (arXiv 2507.13264) and its like.

    Attributes:
        config: how many states are stacked, and the width of the layer between.
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
            length: int32[B]; states that do not fill a row are left out.

        Returns:
            [B, floor(T / stack), features] and its int32[B] lengths.
        """
        c, (batch, frames, width) = self.config, x.shape
        rows = frames // c.stack
        x = x[:, : rows * c.stack].reshape(batch, rows, c.stack * width)
        linear = functools.partial(Linear, bias=c.bias, dtype=self.dtype)
        x = linear(c.width, ("embed", "mlp"), name="up")(x)
        x = jax.nn.gelu(x, approximate=False)
        return linear(self.features, ("mlp", "embed"), name="down")(x), length // c.stack
