"""What the device does for a batch of pieces: tokens, how likely each is, and the CTC output."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.data import Batch
from mtp_jax.decoding import DecoderFunctions, Strategy
from mtp_jax.inference.decode_step import bind_decoder, ctc_labels, encode
from mtp_jax.models.speech_llama import SpeechLlama

_POSITIONS = 8  # whose logits over the whole vocabulary are in memory at a time


@struct.dataclass
class ScoredBatch:
    """A batch, decoded.

    Attributes:
        tokens: int32[B, L], EOS included where it was reached; labels of CTC without a decoder.
        length: int32[B].
        call: int32[B, L], the decoder call that emitted each.
        calls: int32[B] decoder calls.
        log_probs: float32[B, L] of each token by head 1, given those before it; 0 without a
            decoder.
        ctc: float32[B, T, labels + 1] log-probabilities; the last class is the blank.
        frames: int32[B] real ones of these.
        proposed, accepted: int32[B] drafts of heads 2..M that were put to the test, and passed.
    """

    tokens: jax.Array
    length: jax.Array
    call: jax.Array
    calls: jax.Array
    log_probs: jax.Array
    ctc: jax.Array
    frames: jax.Array
    proposed: jax.Array
    accepted: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode_and_score(
    model: SpeechLlama, kind: type[Strategy], params: Any, batch: Batch, strategy: Strategy
) -> ScoredBatch:
    """Decodes a batch, and asks head 1 for the probability of every token.

    That is one more pass of the decoder, over the finished text, whatever the strategy. It is not
    counted as a decoder call: transcripts alone do not need it. Arguments are those of `decode`.
    """
    encoded = encode(model, params, batch)
    active, limit = jnp.asarray(batch.index) >= 0, model.config.data.max_tokens
    seen = bind_decoder(model, params, encoded)
    decoded = strategy.decode(seen, active, limit)
    return ScoredBatch(
        tokens=decoded.tokens,
        length=decoded.length,
        call=decoded.call,
        calls=decoded.calls,
        log_probs=token_log_probs(seen, decoded.tokens, decoded.length),
        ctc=jax.nn.log_softmax(encoded.ctc_logits),
        frames=encoded.ctc_length,
        proposed=decoded.proposed.sum(axis=-1),
        accepted=decoded.accepted.sum(axis=-1),
    )


@functools.partial(jax.jit, static_argnums=0)
def ctc_and_score(model: SpeechLlama, params: Any, batch: Batch) -> ScoredBatch:
    """The encoder's own transcript, at no decoder call."""
    encoded = encode(model, params, batch)
    tokens, length = ctc_labels(encoded)
    return ScoredBatch(
        tokens=tokens,
        length=length,
        call=jnp.zeros_like(tokens),
        calls=jnp.zeros_like(length),
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        ctc=jax.nn.log_softmax(encoded.ctc_logits),
        frames=encoded.ctc_length,
        proposed=jnp.zeros_like(length),
        accepted=jnp.zeros_like(length),
    )


def token_log_probs(model: DecoderFunctions, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """float32[B, L] log-probabilities by head 1 of int32[B, L] `tokens`; 0 beyond `length`.

    The text is fed in one call, behind the audio.
    """
    hidden, cache = model.prefill(tokens.shape[1])
    fed = jnp.maximum(length - 1, 0)
    later, _ = model.extend(tokens[:, :-1], fed, cache)
    hidden = jnp.concatenate([hidden[:, None], later], axis=1)
    blocks = -(-tokens.shape[1] // _POSITIONS)
    padding = blocks * _POSITIONS - tokens.shape[1]

    def in_blocks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, _POSITIONS, *x.shape[2:]), 1, 0)

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        said = jax.nn.log_softmax(model.next_token(block[0]))
        return jnp.take_along_axis(said, block[1][..., None], axis=-1)[..., 0]

    found = jax.lax.map(of_block, (in_blocks(hidden), in_blocks(tokens)))
    found = jnp.moveaxis(found, 0, 1).reshape(tokens.shape[0], -1)[:, : tokens.shape[1]]
    return jnp.where(jnp.arange(tokens.shape[1]) < length[:, None], found, 0.0)


@jax.jit
def columns(ctc: jax.Array, labels: jax.Array) -> jax.Array:
    """float32[B, T, N + 1]: of [B, T, V + 1] the columns int32[B, N] `labels`, and the blank."""
    blank = jnp.full_like(labels[:, :1], ctc.shape[-1] - 1)
    chosen = jnp.concatenate([labels, blank], axis=1)
    return jnp.take_along_axis(ctc, chosen[:, None, :], axis=2)
