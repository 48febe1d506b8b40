"""A recogniser as decoding strategies see it: its decoder functions, for audio already encoded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from mtp_jax.data import Batch
from mtp_jax.decoding import DecoderFunctions, Drafts, DraftText
from mtp_jax.decoding.text import most_likely, select_position
from mtp_jax.distributed import sharding
from mtp_jax.inference.serial_drafts import draft_serially
from mtp_jax.models.ctc import best_labels
from mtp_jax.models.kv_cache import CrossCache, KVCache
from mtp_jax.models.params import products_type
from mtp_jax.models.recogniser import Encoded, Recogniser, call, in_type
from mtp_jax.models.speech_features import speech_features
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.tokenizer.whisper_tokens import DETECTED

PROMPT_BLOCK = 64  # positions of the prompt that one forward pass of the prefill takes
ATTENTION_BLOCK = 32  # positions of a text whose attention one forward pass finds


def encode(model: Recogniser, params: Any, batch: Batch) -> Encoded:
    """Runs front end and encoder over a batch.

    Drafts of the batch take the place of CTC's hypothesis in the rows that have some.
    """
    encoded = call(Recogniser.encode, model, params, *speech_features(model, params, batch))
    if encoded.start is not None and batch.start is not None:
        encoded = dataclasses.replace(encoded, start=jnp.asarray(batch.start))
    if batch.draft is not None and batch.draft_length is not None:
        most = model.config.data.max_tokens
        draft = jnp.asarray(batch.draft)[:, :most], jnp.minimum(batch.draft_length, most)
        if encoded.ctc_hypothesis is not None:
            draft = _where_empty(draft, encoded.ctc_hypothesis)
        encoded = dataclasses.replace(encoded, ctc_hypothesis=draft)
    model = _decoder(model)

    def ready(cross: CrossCache) -> CrossCache:
        cross = cross.astype(jnp.dtype(model.config.train.dtype))  # once, not in every call
        return cross.row_major() if sharding.platform() == "cpu" else cross

    if encoded.drafting is not None:
        encoded = dataclasses.replace(encoded, drafting=ready(encoded.drafting))
    if encoded.start is None or encoded.cross is None:
        return encoded
    encoded = dataclasses.replace(encoded, cross=ready(encoded.cross))
    start = jax.lax.cond(
        jnp.any(encoded.start == DETECTED),
        lambda encoded: call(WhisperRecogniser.detected, model, params, encoded).start,
        lambda encoded: encoded.start,
        encoded,
    )
    return dataclasses.replace(encoded, start=start)


def _where_empty(
    texts: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Tokens int32[B, R] and int32[B] lengths, of `others` where a text of `texts` is empty."""
    (tokens, length), (their_tokens, their_length) = texts, others
    most = max(tokens.shape[1], their_tokens.shape[1])
    tokens, their_tokens = (
        jnp.pad(x, ((0, 0), (0, most - x.shape[1]))) for x in (tokens, their_tokens)
    )
    empty = length == 0
    return (
        jnp.where(empty[:, None], their_tokens, tokens),
        jnp.where(empty, their_length, length),
    )


def no_speech(model: Recogniser, params: Any, encoded: Encoded) -> jax.Array:
    """`WhisperRecogniser.no_speech`, in the type of the decoder."""
    return call(WhisperRecogniser.no_speech, _decoder(model), params, encoded)


def attention(
    model: Recogniser, params: Any, encoded: Encoded, tokens: jax.Array, length: jax.Array
) -> jax.Array:
    """Where in the audio the decoder's alignment heads look for each token of a text.

    The text is fed in blocks, as far as the longest of the batch goes: a short one costs no more
    than its length.

    Args:
        model, params: a Whisper.
        encoded: the audio.
        tokens: int32[B, L], of int32[B] `length`.

    Returns:
        float32[B, L, T], weights that sum to 1 over the frames, at the position that predicts each
        token; 0 behind the last block.
    """
    model = _decoder(model)
    start = cast(jax.Array, encoded.start)
    (rows, before), limit = start.shape, tokens.shape[1]
    fed = before + limit - 1  # the last token predicts nothing that is asked for
    blocks = -(-fed // ATTENTION_BLOCK)
    padding = ((0, 0), (0, blocks * ATTENTION_BLOCK - fed))
    real = jnp.concatenate([start >= 0, jnp.arange(limit - 1) < length[:, None] - 1], axis=1)
    text = jnp.where(real, jnp.concatenate([start, tokens[:, :-1]], axis=1), 0)
    text, real = jnp.pad(text, padding), jnp.pad(real, padding)

    def block(state: tuple[jax.Array, jax.Array, KVCache]) -> tuple[jax.Array, jax.Array, KVCache]:
        at, weights, cache = state
        now, real_now = (
            jax.lax.dynamic_slice_in_dim(x, at, ATTENTION_BLOCK, 1) for x in (text, real)
        )
        found, cache = call(WhisperRecogniser.attention, model, params, now, real_now, cache)
        weights = jax.lax.dynamic_update_slice_in_dim(weights, found, at, 1)
        return at + ATTENTION_BLOCK, weights, cache

    weights = jnp.zeros((rows, blocks * ATTENTION_BLOCK, encoded.audio.shape[1]))
    cache = call(Recogniser.cache, model, params, encoded, fed)
    end = before + jnp.max(length) - 1
    state = jnp.int32(0), weights, cache
    _, weights, _ = jax.lax.while_loop(lambda state: state[0] < end, block, state)
    return weights[:, before - 1 : before - 1 + limit]


def bind_decoder(model: Recogniser, params: Any, encoded: Encoded) -> DecoderFunctions:
    """The decoder functions of `model`, to be used inside the ``jit`` that calls this.

    Args:
        model, params: the recogniser.
        encoded: its encoder's output.
    """
    model = _decoder(model)
    if sharding.platform() != "cpu":
        params = products_type(params, model.config.train.dtype)  # once, not in every call
    logits, hypothesis = encoded.ctc_logits, encoded.ctc_hypothesis
    draft = functools.partial(_draft, model, params)
    if model.config.heads.serial:
        draft = functools.partial(draft_serially, model, params, encoded)
    return DecoderFunctions(
        prefill=functools.partial(_prefill, model, params, encoded),
        extend=lambda *args: call(Recogniser.extend, model, params, *args),
        next_token=lambda hidden: call(Recogniser.next_token, model, params, hidden),
        draft=draft,
        heads=model.config.heads.count,
        eos=model.vocabulary.eos,
        ctc_labels=None if logits is None else DraftText(*best_labels(logits, encoded.ctc_length)),
        ctc_hypothesis=None if hypothesis is None else DraftText(*hypothesis),
        token_kinds=_token_kinds(model.vocabulary.kinds),
    )


def _token_kinds(kinds: str) -> jax.Array | None:
    """int8[V], or None if they are not known."""
    return jnp.array([*map(int, kinds)], jnp.int8) if kinds else None


def _decoder(model: Recogniser) -> Recogniser:
    """`model` in the type that its decoder runs in.

    A decoder call multiplies few rows, one per position, and its attention fewer. A CPU takes long
    for these in bfloat16, so there activations and caches are float32, whatever the encoder ran in;
    matrices are multiplied in the type that `layout.for_decoding` gave them.
    """
    return in_type(model, "float32") if sharding.platform() == "cpu" else model


def _draft(
    model: Recogniser,
    params: Any,
    hidden: jax.Array,
    last: jax.Array,
    wanted: jax.Array,
    min_probability: float,
) -> Drafts:
    """The most likely token of each of heads 2..M, which are computed at once."""
    del last, min_probability
    places, log_probs = most_likely(call(Recogniser.draft_logits, model, params, hidden))
    tokens = call(Recogniser.draft_tokens, model, params, places)
    drafted = jnp.where(wanted, model.config.heads.count - 1, 0)
    return Drafts(tokens, jnp.exp(log_probs), drafted)


def _prefill(
    model: Recogniser, params: Any, encoded: Encoded, capacity: int
) -> tuple[jax.Array, KVCache]:
    """`Recogniser.prefill` in blocks, which ends with the longest prompt of the batch.

    A compressed prompt has one slot per encoder frame, of which most stay empty.
    """
    x, real, offset = call(Recogniser.prompt, model, params, encoded)
    cache = call(Recogniser.cache, model, params, encoded, x.shape[1] + capacity)
    size = min(PROMPT_BLOCK, x.shape[1])
    blocks = -(-x.shape[1] // size)
    padding_last = jnp.argsort(~real, axis=1, stable=True)
    empty = ((0, 0), (0, blocks * size - x.shape[1]))
    x = jnp.pad(jnp.take_along_axis(x, padding_last[..., None], axis=1), (*empty, (0, 0)))
    real, offset = (
        jnp.pad(jnp.take_along_axis(y, padding_last, axis=1), empty) for y in (real, offset)
    )
    length = jnp.sum(real, axis=1)

    def block(state: tuple[jax.Array, jax.Array, KVCache]) -> tuple[jax.Array, jax.Array, KVCache]:
        start, last, cache = state
        x_now, real_now, offset_now = (
            jax.lax.dynamic_slice_in_dim(y, start, size, 1) for y in (x, real, offset)
        )
        hidden, cache = call(
            Recogniser.extend_prompt, model, params, x_now, real_now, offset_now, cache
        )
        ends = length - 1 - start
        here = (ends >= 0) & (ends < size)
        at_end = select_position(hidden, jnp.clip(ends, 0, size - 1))
        return start + size, jnp.where(here[:, None], at_end, last), cache

    last = jnp.zeros((x.shape[0], model.hidden_width), model.config.train.dtype)
    state = jnp.int32(0), last, cache
    _, last, cache = jax.lax.while_loop(lambda state: state[0] < jnp.max(length), block, state)
    return last, cache
