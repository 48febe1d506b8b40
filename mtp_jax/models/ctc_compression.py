"""CTC compression: one audio embedding for each label that the encoder's CTC head finds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtp_jax.models.encoders.conformer import frames_mask
from mtp_jax.models.layers import zero_padding


def label_weights(
    logits: jax.Array, length: jax.Array, capacity: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """How much each frame counts in the average that stands for each label.

    A label's frames are those where it is CTC's most likely class, and the blank ones behind them;
    blank frames before the first label count as its own. They count alike. (Averaging the frames
    that CTC labels alike is due to Gaido et al., "CTC-based compression for direct speech
    translation", EACL 2021, who keep blank runs apart; without those the averages follow the text
    one to one.) No gradient flows through the choice.

    Args:
        logits: [B, T, V + 1] of CTC, the last class is the blank.
        length: int32[B] real frames.
        capacity: R, the greatest number of averages: all further labels are part of the last. The
            default is T, which is enough for any utterance.

    Returns:
        float32[B, R, T], of which row r of an utterance holds the weights of all frames in its
        r-th average, and the int32[B] number of averages, which come first; a row of audio without
        any label has one.
    """
    frames, blank = logits.shape[1], logits.shape[2] - 1
    real = frames_mask(length, frames)
    best = jnp.argmax(logits, axis=-1)
    changed = jnp.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    labels = jnp.cumsum(changed & (best != blank) & real, axis=1)
    # A product with this matrix averages: accelerators are slow at scattering.
    capacity = capacity or frames
    mine = jnp.clip(labels - 1, 0, capacity - 1)[:, None, :] == jnp.arange(capacity)[:, None]
    mine &= real[:, None, :]
    weights = mine / jnp.maximum(jnp.sum(mine, axis=-1, keepdims=True), 1)
    count = jnp.clip(labels[:, -1], length > 0, capacity)
    return jax.lax.stop_gradient(weights), count.astype(jnp.int32)


def label_posteriors(logits: jax.Array, length: jax.Array, weights: jax.Array) -> jax.Array:
    """What CTC reads in each average: float32[B, R, V], adding up to 1, or 0 where there is none.

    Blanks are left out of it: a label is the same one however long it lasts. No gradient flows
    through the reading.

    Args:
        logits: [B, T, V + 1]; `length`: int32[B], as in `label_weights`.
        weights: float32[B, R, T] that it has made of them.
    """
    real = frames_mask(length, logits.shape[1])
    posteriors = weights @ zero_padding(jax.nn.softmax(logits)[..., :-1], real)
    return jax.lax.stop_gradient(
        posteriors / jnp.maximum(jnp.sum(posteriors, axis=-1, keepdims=True), 1e-6)
    )
