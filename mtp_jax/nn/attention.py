"""Bidirectional attention, as each platform does it fastest."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LONG = 256  # frames from which one head's scores no longer stay in a CPU's caches with the others'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    """Softmax attention of all positions to the real ones.

    Args:
        q, k, v: [B, T, N, H].
        real: bool[B, T].

    Returns:
        [B, T, N, H].
    """
    if q.shape[1] < _LONG:
        return _all_heads(q, k, v, real)
    return jax.lax.platform_dependent(q, k, v, real, cpu=_head_by_head, default=_all_heads)


def _all_heads(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=real[:, None, None, :])


def _head_by_head(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    """2.3 times as fast on two cores, forwards and backwards, and only one head's scores exist."""

    @jax.checkpoint
    def head(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = (x[:, :, None] for x in qkv)
        return _all_heads(q, k, v, real)[:, :, 0]

    by_head = tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v))
    return jnp.moveaxis(jax.lax.map(head, by_head), 0, 2)
