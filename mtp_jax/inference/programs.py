"""The one program of inference: waveforms to tokens, in one ``jit``."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.data import Batch
from mtp_jax.decoding import CtcGreedy, Decoded, Strategy
from mtp_jax.inference.decoder_functions import attention, bind_decoder, encode, no_speech
from mtp_jax.models.recogniser import Recogniser


@struct.dataclass
class Inference:
    """A batch, decoded.

    Attributes:
        decoded: what the strategy returns.
        frames: int32[B] real frames of what follows.
        ctc_log_probs: float32[B, T, labels + 1], the last class is the blank; None unless wanted,
            and without a CTC head.
        attention: float32[B, L, T], how each token's prediction weighs the frames; None unless
            wanted, and of decoders that do not attend to the audio.
        start: int32[B, P], of such a decoder, and of a speech LLM: the tokens before the text, a
            detected language among them.
        no_speech: float32[B], of a Whisper: the probability that nobody speaks; None unless
            alignment is wanted, and where CTC alone decodes.
        drafter_calls: int32[B] decoder calls of the model that drafted for this one; None where
            none did.
    """

    decoded: Decoded
    frames: jax.Array
    ctc_log_probs: jax.Array | None = None
    attention: jax.Array | None = None
    start: jax.Array | None = None
    no_speech: jax.Array | None = None
    drafter_calls: jax.Array | None = None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def infer(
    model: Recogniser,
    kind: type[Strategy],
    with_alignment: bool,
    params: Any,
    batch: Batch,
    strategy: Strategy,
) -> Inference:
    """Front end, encoder, prefill and decoder, each once; rows with ``index`` -1 are filler.

    Args:
        model, params: the recogniser.
        kind: the class of `strategy`. JAX takes ``Greedy(16)`` and ``Verify(16)`` for one structure
            (it compares the fields of dataclasses, up to 0.12 at least), and up to 0.10 it now and
            then gives the one's program for the other.
        with_alignment: whether what words are aligned by is wanted as well.
        batch: its references are not looked at.
        strategy: what decodes.
    """
    limit = model.config.data.max_tokens
    encoded = encode(model, params, batch)
    functions = bind_decoder(model, params, encoded)
    decoded = strategy.decode(functions, jnp.asarray(batch.index) >= 0, limit)
    done = Inference(decoded=decoded, frames=encoded.ctc_length, start=encoded.start)
    if not with_alignment:
        return done
    if encoded.cross is not None and kind is not CtcGreedy:
        done = dataclasses.replace(done, no_speech=no_speech(model, params, encoded))
    if encoded.ctc_logits is not None:
        return dataclasses.replace(done, ctc_log_probs=jax.nn.log_softmax(encoded.ctc_logits))
    if encoded.cross is None:  # nothing tells where a word was said
        return done
    return dataclasses.replace(
        done, attention=attention(model, params, encoded, decoded.tokens, decoded.length)
    )


@functools.partial(jax.jit, static_argnums=0)
def two_best_logits(
    model: Recogniser, params: Any, batch: Batch, text: jax.Array, count: jax.Array
) -> jax.Array:
    """float32[2], head 1's greatest logits behind the first int32[1] `count` of int32[1, L]."""
    functions = bind_decoder(model, params, encode(model, params, batch))
    first, cache = functions.prefill(text.shape[1])
    hidden, _ = functions.extend(text, count, cache)
    last = jnp.where(count[0], hidden[:, count[0] - 1], first)
    return jax.lax.top_k(functions.next_token(last)[0], 2)[0]
