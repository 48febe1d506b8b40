"""Training losses: arrays in, numbers out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtp_jax.models.mixed_precision import materialised


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


def among(targets: jax.Array, tokens: jax.Array | None, size: int) -> tuple[jax.Array, jax.Array]:
    """Where each target stands among some `tokens` of a vocabulary.

    Args:
        targets: int32[...].
        tokens: int32[N], all different; None for the whole vocabulary.
        size: V.

    Returns:
        int32[...] places, and bool[...], True where there is one.
    """
    if tokens is None:
        return targets, jnp.ones(targets.shape, bool)
    places = jnp.full(size, -1).at[tokens].set(jnp.arange(len(tokens)))[targets]
    return jnp.maximum(places, 0), places >= 0


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    columns: int,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of ``hidden @ kernel.T`` whose logits never exist whole, nor their gradient.

    The vocabulary is gone through in parts: once for the normaliser (a running log-sum-exp, as in
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), and once more for
    the gradients, of which each part of the kernel's is made in one go.

    Args:
        hidden: [..., D].
        kernel: [V, D], of any type; products are in the type of `hidden`, their sums float32.
        targets: int32[...].
        weight: float32[...] of each target; where it is 0, hidden and target may be anything.
        columns: of the vocabulary in a part, about.
        label_smoothing: mass spread evenly over the vocabulary (Szegedy et al., 2016).

    Returns:
        The weighted sum of nats, through which gradients flow, and float32[...] nats of each
        target, through which none do.
    """
    parts = max(1, round(kernel.shape[0] / columns))
    hidden = jnp.where(weight[..., None] > 0, hidden, jnp.zeros((), hidden.dtype))
    nats = _nats(hidden, kernel, targets, parts, label_smoothing)
    return jnp.sum(jnp.where(weight > 0, weight * nats, 0.0)), jax.lax.stop_gradient(nats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _nats(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, parts: int, smoothing: float
) -> jax.Array:
    return _nats_and_normalizers(hidden, kernel, targets, parts, smoothing)[0]


def _part_logits(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array, size: int) -> jax.Array:
    """float32[..., C] logits of the `tokens` whose rows `kernel` [C, D] holds."""
    product = jnp.einsum("...d,vd->...v", hidden, kernel, preferred_element_type=jnp.float32)
    return jnp.where(tokens < size, product, -jnp.inf)


def _nats_and_normalizers(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, parts: int, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Nats of each target, and the logarithm of each normaliser."""
    size, real = kernel.shape[0], jnp.zeros(targets.shape)

    def part(carry: tuple[jax.Array, ...], x: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        top, total, target, mean = carry
        logits = _part_logits(hidden, x[0], x[1], size)
        new = jnp.maximum(top, jnp.max(logits, axis=-1))
        total = total * jnp.exp(top - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        mine = x[1] == targets[..., None]
        target += jnp.sum(jnp.where(mine, logits, 0.0), axis=-1)
        if smoothing:
            mean += jnp.sum(jnp.where(x[1] < size, logits, 0.0), axis=-1) / size
        return (new, total, target, mean), None

    start = (real - jnp.inf, real, real, real)
    (top, total, target, mean), _ = jax.lax.scan(part, start, _in_parts(hidden, kernel, parts))
    log_z = top + jnp.log(total)
    return log_z - (1 - smoothing) * target - smoothing * mean, log_z


def _nats_forward(
    hidden: Any, kernel: Any, targets: Any, parts: int, smoothing: float
) -> tuple[jax.Array, tuple[Any, ...]]:
    given = (hidden.value, kernel.value, targets.value)
    nats, log_z = _nats_and_normalizers(*given, parts, smoothing)
    # The loop would not find out by itself that a frozen kernel needs no gradient. What a backward
    # pass is to know beforehand must be in the structure of what is saved, not in its values.
    trained = () if kernel.perturbed else None
    return nats, (*given, log_z, trained)


def _nats_backward(
    parts: int, smoothing: float, saved: tuple[Any, ...], cotangent: Any
) -> tuple[jax.Array, jax.Array | None, None]:
    hidden, kernel, targets, log_z, trained = saved
    cotangent = materialised(cotangent)
    size, leading = kernel.shape[0], tuple(range(targets.ndim))

    def part(of_hidden: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        logits = _part_logits(hidden, x[0], x[1], size)
        error = jnp.exp(logits - log_z[..., None])
        error -= (1 - smoothing) * (x[1] == targets[..., None])
        if smoothing:
            error -= jnp.where(x[1] < size, smoothing / size, 0.0)
        error = (error * cotangent[..., None]).astype(hidden.dtype)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        sums = functools.partial(
            jnp.tensordot, axes=(leading, leading), preferred_element_type=jnp.float32
        )
        of_kernel = None if trained is None else sums(error, hidden)
        return of_hidden + product("...v,vd->...d", error, x[0]), of_kernel

    start = jnp.zeros(hidden.shape, jnp.float32)
    of_hidden, of_kernel = jax.lax.scan(part, start, _in_parts(hidden, kernel, parts))
    of_hidden = of_hidden.astype(hidden.dtype)
    if of_kernel is None:
        return of_hidden, None, None
    # XLA would join a transposition behind this with the products, and a CPU has none such in
    # bfloat16 (jax 0.10.2): kernels of independent heads are transposed.
    of_kernel = jax.lax.optimization_barrier(of_kernel)
    of_kernel = jnp.moveaxis(of_kernel, 0, 1).reshape(-1, kernel.shape[1])[:size]
    return of_hidden, of_kernel.astype(kernel.dtype), None


_nats.defvjp(_nats_forward, _nats_backward, symbolic_zeros=True)


def _in_parts(hidden: jax.Array, kernel: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
    """Rows of `kernel` in `parts` of even size, and int32 which tokens they are.

    Every part has rows from all over the vocabulary: one that is split over devices stays so.
    """
    rows = -(-kernel.shape[0] // parts)
    padded = jnp.pad(kernel.astype(hidden.dtype), ((0, rows * parts - kernel.shape[0]), (0, 0)))
    tokens = jnp.arange(rows * parts).reshape(rows, parts)
    return jnp.moveaxis(padded.reshape(rows, parts, -1), 1, 0), tokens.T


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


def consistency(logits: jax.Array, frames: jax.Array) -> jax.Array:
    """How far CTC is from saying the same of two views of an utterance (CR-CTC, Yao et al., 2024).

    At each frame the Kullback-Leibler divergence of either view from the other, through which no
    gradient flows.

    Args:
        logits: float32[B, 2, T, V + 1]; `frames`: int32[B], of both views.

    Returns:
        A float32 scalar: nats summed over frames and views.
    """
    real = jnp.arange(logits.shape[2]) < frames[:, None, None]
    # As in `cross_entropy`: what is not real may be anything.
    log_probs = jax.nn.log_softmax(jnp.where(real[..., None], logits, 0.0))
    other = jax.lax.stop_gradient(log_probs[:, ::-1])
    return jnp.sum(jnp.exp(other) * (other - log_probs))


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
