"""Encoders of windows: a recording is cut into parts of one length, each encoded by itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Encode = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def encode_windows(encode: Encode, features: jax.Array, frames: int) -> jax.Array:
    """Hidden states of every window of a batch, those of a row one after the other.

    Args:
        encode: [N, frames, Z] and int32[N] frames to [N, T, D] and their lengths.
        features: [B, W frames, Z]; all of them are real, the silence of a padded window too.
        frames: in a window.

    Returns:
        [B, W T, D].
    """
    batch, total, width = features.shape
    windows = features.reshape(batch * (total // frames), frames, width)
    x, _ = encode(windows, jnp.full(len(windows), frames, jnp.int32))
    return x.reshape(batch, -1, x.shape[-1])
