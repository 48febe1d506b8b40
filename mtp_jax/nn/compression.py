"""CTC compression: one embedding for each run of frames that CTC labels alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtp_jax.nn.conformer import frames_mask


def compress(x: jax.Array, logits: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages every run of frames whose most likely CTC class, blank included, is the same.

    (Gaido et al., "CTC-based compression for direct speech translation", EACL 2021.) What is left
    is about as long as the text, and goes along with it: a decoder learns to read it from little
    data. Gradients flow through the averages, not through the choice of runs.

    Args:
        x: [B, T, D] encoder output.
        logits: [B, T, V + 1] of CTC.
        length: int32[B] real frames.

    Returns:
        [B, T, D], left-aligned and 0 behind the last run, and the int32[B] number of runs.
    """
    real = frames_mask(length, x.shape[1])
    best = jnp.argmax(logits, axis=-1)
    first = jnp.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True) & real
    run = jnp.cumsum(first, axis=1) - 1
    # A product with a matrix of zeros and ones: accelerators are slow at scattering.
    members = (run[:, None, :] == jnp.arange(x.shape[1])[:, None]) & real[:, None, :]
    share = members / jnp.maximum(jnp.sum(members, axis=-1, keepdims=True), 1)
    averages = jnp.einsum("brt,btd->brd", share.astype(x.dtype), jnp.where(real[..., None], x, 0))
    return averages, jnp.sum(first, axis=1, dtype=jnp.int32)
