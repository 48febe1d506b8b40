"""Levenshtein's edit distance, one row of his table per token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def edit_distance(
    a: jax.Array, a_length: jax.Array, b: jax.Array, b_length: jax.Array
) -> jax.Array:
    """int32[B] Levenshtein distance of rows of [B, I] and [B, J], of int32[B] lengths each."""
    place = jnp.arange(b.shape[1] + 1)

    def add(row: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        value, real = token
        replaced = row[:, :-1] + (b != value[:, None])
        longer = (row + 1).at[:, 1:].min(replaced)
        # Tokens of b may be skipped: the least of longer[i] + j - i over i <= j.
        longer = jax.lax.cummin(longer - place, axis=1) + place
        return jnp.where(real[:, None], longer, row), None

    real = jnp.arange(a.shape[1])[:, None] < a_length
    start = jnp.broadcast_to(place, (len(b), len(place)))
    end = jax.lax.scan(add, start, (a.T, real))[0]
    return jnp.take_along_axis(end, b_length[:, None], axis=1)[:, 0]
