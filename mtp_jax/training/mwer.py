"""Minimum word error rate training: an n-best list made, scored and weighed inside one step."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.data import Batch
from mtp_jax.decoding import Decoded, NBest, registry
from mtp_jax.inference.decoder_functions import bind_decoder, encode
from mtp_jax.models.recogniser import Encoded, Recogniser, call
from mtp_jax.training import losses
from mtp_jax.training.edit_distance import edit_distance
from mtp_jax.training.word_hashes import Spelling, words

Metrics = dict[str, jax.Array]


def mwer_loss(
    model: Recogniser,
    params: Any,
    encoded: Encoded,
    tokens: jax.Array,
    length: jax.Array,
    spelling: Spelling,
) -> tuple[jax.Array, Metrics]:
    """Expected word errors an utterance, beyond the mean of its n-best list.

    The list is made by beam search from `encoded`, augmentation, dropout and all: a model
    that knows its training data by heart would make no errors to learn from. No gradient flows
    through the search; hypotheses are scored by a teacher-forced pass, through which it does.

    Args:
        model: whose config has the options, in `config.Mwer`.
        params: its parameters.
        encoded: the audio.
        tokens: int32[B, L], the references; `length`: int32[B], and rows of 0 count nowhere.
        spelling: of the tokenizer's pieces.

    Returns:
        The loss, and scalars: ``mwer`` (the loss), and means an utterance: ``nbest_errors`` (of all
        hypotheses), ``best_errors`` (of the first), ``oracle_errors`` (of the best),
        ``nbest_size``, ``nbest_calls``.
    """
    c = model.config.mwer
    active = length > 0
    decoded = _search(model, *jax.lax.stop_gradient((params, encoded)), active, tokens.shape[1])
    nbest = decoded.nbest
    assert nbest is not None
    errors = word_errors(spelling, nbest, tokens, length)
    counts, first = errors, errors[:, 0]
    if c.reference:
        nbest = with_reference(nbest, tokens, length)
        counts = jnp.pad(errors, ((0, 0), (0, 1)))
    log_probs = sequence_log_probs(model, params, encoded, nbest)
    total, rows = losses.mwer(log_probs, counts, nbest.real)
    loss = total / jnp.maximum(rows, 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(active, x, 0)) / jnp.maximum(rows, 1)

    real = decoded.nbest.real  # type: ignore[union-attr]
    size = jnp.sum(real, axis=1)
    return loss, {
        "mwer": loss,
        "nbest_errors": mean(jnp.sum(jnp.where(real, errors, 0), axis=1) / jnp.maximum(size, 1)),
        "best_errors": mean(first),
        "oracle_errors": mean(jnp.min(jnp.where(real, errors, jnp.iinfo(jnp.int32).max), axis=1)),
        "nbest_size": mean(size),
        "nbest_calls": mean(decoded.calls),
    }


def _search(
    model: Recogniser, params: Any, encoded: Encoded, active: jax.Array, limit: int
) -> Decoded:
    c = model.config.mwer
    options = registry.Options(
        heads=model.config.heads.count,
        draft_width=model.config.evaluation.draft_width,
        beams=c.beams,
        rounds=c.rounds,
    )
    strategy = registry.get(c.search).make(options)
    return strategy.decode(bind_decoder(model, params, encoded), active, limit)


def search_seconds(model: Recogniser, params: Any, batch: Batch) -> float:
    """Wall clock of making the n-best lists of one batch, compilation apart."""
    encoded = jax.jit(encode, static_argnums=0)(model, params, batch)
    active = jnp.asarray(batch.token_length) > 0
    lowered = jax.jit(_search, static_argnums=(0, 4)).lower(
        model, params, encoded, active, batch.tokens.shape[1]
    )
    search = lowered.compile()
    jax.block_until_ready(search(params, encoded, active))
    start = time.perf_counter()
    jax.block_until_ready(search(params, encoded, active))
    return time.perf_counter() - start


def word_errors(
    spelling: Spelling, nbest: NBest, tokens: jax.Array, length: jax.Array
) -> jax.Array:
    """int32[B, K] word errors of each hypothesis against int32[B, L] references."""
    rows, beams, _ = nbest.tokens.shape
    said = words(spelling, nbest.tokens.reshape(rows * beams, -1), nbest.length.reshape(-1))
    meant, count = words(spelling, tokens, length)
    meant, count = jnp.repeat(meant, beams, axis=0), jnp.repeat(count, beams)
    return edit_distance(meant, count, *said).reshape(rows, beams)


def with_reference(nbest: NBest, tokens: jax.Array, length: jax.Array) -> NBest:
    """`nbest` with int32[B, L] references as one hypothesis more, unless the list has it."""
    column = jnp.arange(tokens.shape[1])
    text = jnp.where(column < length[:, None], tokens, 0)[:, None]
    same = (nbest.length == length[:, None]) & jnp.all(nbest.tokens == text, axis=2)
    new = (length > 0) & ~jnp.any(same & nbest.real, axis=1)
    return NBest(
        tokens=jnp.concatenate([nbest.tokens, text], axis=1),
        length=jnp.concatenate([nbest.length, length[:, None]], axis=1),
        log_probs=jnp.pad(nbest.log_probs, ((0, 0), (0, 1), (0, 0))),
        real=jnp.concatenate([nbest.real, new[:, None]], axis=1),
    )


def sequence_log_probs(model: Recogniser, params: Any, encoded: Encoded, nbest: NBest) -> jax.Array:
    """float32[B, K] log-probability of each hypothesis, differentiable.

    With ``config.mwer.all_heads`` it is the mean over heads, weighted as in cross-entropy, of what
    each head makes of the tokens it can see ahead to: our reading of how M heads might take part.

    Args:
        model, params: the recogniser.
        encoded: the audio.
        nbest: the hypotheses; the audio prompt of an utterance is run over once.
    """
    c, (rows, beams, limit) = model.config, nbest.tokens.shape
    text, length = nbest.tokens.reshape(-1, limit), nbest.length.reshape(-1)
    first, cache = call(Recogniser.prefill, model, params, encoded, 0)
    count = jnp.maximum(length - 1, 0)
    branches = cache.fork(beams, limit)
    hidden, _ = call(Recogniser.extend, model, params, text[:, :-1], count, branches)
    hidden = jnp.concatenate([jnp.repeat(first, beams, axis=0)[:, None], hidden], axis=1)

    def scored(logits: jax.Array, m: int) -> jax.Array:
        targets, real = losses.shifted_targets(text, length, m)
        log_probs = jax.nn.log_softmax(jnp.where(real[..., None], logits, 0.0))
        log_probs = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(real, log_probs, 0.0), axis=1)

    total = scored(call(Recogniser.next_token, model, params, hidden), 1)
    if c.mwer.all_heads:
        weights = losses.head_weights(c.heads.count, c.loss.head_weight, c.loss.head_decay)
        for m in range(2, c.heads.count + 1):
            logits = call(Recogniser.head_logits, model, params, hidden, m)
            total += weights[m - 1] * scored(logits, m)
        total /= jnp.sum(weights)
    return total.reshape(rows, beams)
