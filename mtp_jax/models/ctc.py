"""What CTC reads in a recording: its best path, repeats merged and blanks dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtp_jax.models.encoders.conformer import frames_mask


def best_labels(logits: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Labels of CTC's best path.

    Args:
        logits: [B, T, labels + 1], the last class is the blank.
        length: int32[B] real frames.

    Returns:
        int32[B, T] labels, 0 behind the last, and int32[B], how many there are.
    """
    frames, blank = logits.shape[1], logits.shape[2] - 1
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    new = jnp.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    kept = new & (best != blank) & frames_mask(length, frames)
    slots = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, frames)
    rows = jnp.arange(best.shape[0])[:, None]
    labels = jnp.zeros_like(best).at[rows, slots].set(best, mode="drop")
    return labels, jnp.sum(kept, axis=1, dtype=jnp.int32)
