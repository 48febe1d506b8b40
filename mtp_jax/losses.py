"""Training losses: arrays in, numbers out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def shifted_targets(
    tokens: jax.Array, length: jax.Array, head: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """What head `head` must predict at each text position.

    The hidden state at position i predicts ``tokens[:, i + head - 1]``; positions whose target
    would lie beyond EOS have none.

    Args:
        tokens: int32[B, L], EOS included; `length`: int32[B].
        head: m, from 1 (may be traced).

    Returns:
        int32[B, L] targets and bool[B, L], True where there is one.
    """
    source = jnp.arange(tokens.shape[1]) + head - 1
    targets = jnp.take(tokens, jnp.minimum(source, tokens.shape[1] - 1), axis=1)
    return targets, source < length[:, None]


def cross_entropy(
    logits: jax.Array, targets: jax.Array, real: jax.Array, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of one head, and how many targets it was summed over.

    Args:
        logits: float32[B, L, V].
        targets: int32[B, L].
        real: bool[B, L]; other positions are ignored.
        label_smoothing: mass spread evenly over the vocabulary (Szegedy et al., 2016).

    Returns:
        Two float32 scalars: nats, and targets.
    """
    logits = jnp.where(real[..., None], logits, 0.0)  # a NaN in padding must not reach gradients
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * jnp.mean(logits, axis=-1)
    nats = jnp.where(real, log_z - target, 0.0)
    return jnp.sum(nats), jnp.sum(real, dtype=jnp.float32)


def head_weights(count: int, weight: float, decay: float) -> jax.Array:
    """float32[M] weights of the heads: 1, then ``weight * decay ** (m - 2)``.

    Head 1 keeps weight 1 whatever M is, so that an M = 1 baseline is trained alike.
    """
    extra = weight * decay ** jnp.arange(count - 1, dtype=jnp.float32)
    return jnp.concatenate([jnp.ones(1), extra])


def ctc(
    logits: jax.Array, frames: jax.Array, labels: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Connectionist temporal classification (Graves et al., 2006), the blank being the last class.

    An utterance with fewer frames than its labels and the blanks between equal neighbours need
    has no alignment; it is left out and counted.

    Args:
        logits: float32[B, T, V + 1]; `frames`: int32[B].
        labels: int32[B, L]; `length`: int32[B].

    Returns:
        Three float32 scalars: nats summed over the utterances that fit, their labels, and the
        number of utterances too short. Rows without labels count nowhere.
    """
    column = jnp.arange(labels.shape[1])
    repeats = (labels[:, 1:] == labels[:, :-1]) & (column[1:] < length[:, None])
    needed = length + jnp.sum(repeats, axis=1)
    fits = (frames >= needed) & (length > 0)
    padding = jnp.arange(logits.shape[1]) >= frames[:, None]
    nats = optax.ctc_loss(
        jnp.where(padding[..., None], 0.0, logits),  # as in `cross_entropy`
        padding.astype(jnp.float32),
        labels,
        (column >= length[:, None]).astype(jnp.float32),
        blank_id=logits.shape[-1] - 1,
    )
    return (
        jnp.sum(jnp.where(fits, nats, 0.0)),
        jnp.sum(jnp.where(fits, length, 0), dtype=jnp.float32),
        jnp.sum(~fits & (length > 0), dtype=jnp.float32),
    )


def mwer(log_probs: jax.Array, errors: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum word error rate: expected errors of an n-best list (Prabhavalkar et al., 2018).

    Each row's probabilities are made to add up to one over its list, and the list's mean error is
    subtracted, which changes no gradient of the expectation but its noise. Where all hypotheses of
    a row have equally many errors, loss and gradient are exactly zero.

    Args:
        log_probs: float32[B, K] of whole hypotheses.
        errors: [B, K] word errors of each.
        real: bool[B, K], which are hypotheses; rows with none count nowhere.

    Returns:
        Two float32 scalars: expected errors beyond the mean, summed over rows; the number of rows.
    """
    count = jnp.sum(real, axis=1)
    mean = jnp.sum(jnp.where(real, errors, 0), axis=1) / jnp.maximum(count, 1)
    # As in `cross_entropy`: what is not real may be anything, NaN included, and adds no gradient.
    shares = jax.nn.softmax(jnp.where(real, log_probs, jnp.finfo(jnp.float32).min), axis=1)
    above = jnp.where(real, errors - mean[:, None], 0.0)
    return jnp.sum(shares * above), jnp.sum(count > 0, dtype=jnp.float32)
