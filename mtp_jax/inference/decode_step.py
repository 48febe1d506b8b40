"""Waveforms to tokens: front end, encoder and a decoding strategy in one ``jit``."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.data import Batch
from mtp_jax.decoding import Decoded, DecoderFunctions, Strategy
from mtp_jax.decoding.edit_distance import DraftText
from mtp_jax.decoding.interface import at
from mtp_jax.distributed import sharding
from mtp_jax.inference import drafters
from mtp_jax.models.ctc import best_labels
from mtp_jax.models.kv_cache import KVCache
from mtp_jax.models.params import products_type
from mtp_jax.models.speech_features import speech_features
from mtp_jax.models.speech_llama import Encoded, SpeechLlama, call, in_type

PROMPT_BLOCK = 64  # positions of the prompt that the decoder reads at a time


def encode(model: SpeechLlama, params: Any, batch: Batch) -> Encoded:
    """Runs front end and encoder over a batch."""
    encoded: Encoded = call(model, params, "encode", *speech_features(model, params, batch))
    return encoded


def bind_decoder(model: SpeechLlama, params: Any, encoded: Encoded) -> DecoderFunctions:
    """`model` as the strategies see it, for audio already encoded.

    A decoder call multiplies few rows, one a position. A CPU does that ten times as fast in float32
    as in bfloat16, so there the decoder runs in float32, whatever the encoder ran in.

    Args:
        model, params: the recogniser.
        encoded: its encoder's output.
    """
    if sharding.platform() == "cpu":
        model = in_type(model, "float32")
    params = products_type(params, model.config.train.dtype)  # once, not in every call
    return DecoderFunctions(
        prefill=functools.partial(_prefill, model, params, encoded),
        extend=lambda *args: call(model, params, "extend", *args),
        next_token=lambda hidden: call(model, params, "next_token", hidden),
        later_tokens=lambda hidden: call(model, params, "draft_logits", hidden),
        draft=drafters.from_heads(model, params),
        heads=model.config.heads.count,
        eos=model.vocabulary.eos,
        ctc_hypothesis=None
        if encoded.ctc_hypothesis is None
        else DraftText(*encoded.ctc_hypothesis),
    )


def _prefill(
    model: SpeechLlama, params: Any, encoded: Encoded, capacity: int
) -> tuple[jax.Array, KVCache]:
    """`SpeechLlama.prefill`, which ends with the longest prompt of the batch.

    A prompt of what CTC reads has capacity for a token a frame, and most of it stays empty.
    """
    x, real, position_offset = call(model, params, "prompt", encoded)
    cache = call(model, params, "cache", position_offset, x.shape[1] + capacity)
    blocks = -(-x.shape[1] // PROMPT_BLOCK)
    front = jnp.argsort(~real, axis=1, stable=True)  # padding goes to the end
    empty = ((0, 0), (0, blocks * PROMPT_BLOCK - x.shape[1]))
    x = jnp.pad(jnp.take_along_axis(x, front[..., None], axis=1), (*empty, (0, 0)))
    real, position_offset = (
        jnp.pad(jnp.take_along_axis(y, front, axis=1), empty) for y in (real, position_offset)
    )
    length = jnp.sum(real, axis=1)

    def block(state: tuple[jax.Array, jax.Array, KVCache]) -> tuple[jax.Array, jax.Array, KVCache]:
        start, last, cache = state
        now = [
            jax.lax.dynamic_slice_in_dim(y, start, PROMPT_BLOCK, 1)
            for y in (x, real, position_offset)
        ]
        hidden, cache = call(model, params, "read", *now, cache)
        ends = length - 1 - start
        here = (ends >= 0) & (ends < PROMPT_BLOCK)
        found = at(hidden, jnp.clip(ends, 0, PROMPT_BLOCK - 1))
        return start + PROMPT_BLOCK, jnp.where(here[:, None], found, last), cache

    last = jnp.zeros((x.shape[0], model.hidden_width), model.config.train.dtype)
    state = jnp.int32(0), last, cache
    _, last, cache = jax.lax.while_loop(lambda state: state[0] < jnp.max(length), block, state)
    return last, cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode(
    model: SpeechLlama, kind: type[Strategy], params: Any, batch: Batch, strategy: Strategy
) -> Decoded:
    """Decodes a batch of waveforms; rows with ``index`` -1 are filler.

    Args:
        model, params: the recogniser.
        kind: the class of `strategy`. JAX takes ``Greedy(16)`` and ``Verify(16)`` for one structure
            (it compares the fields of dataclasses, up to 0.12 at least), and up to 0.10 it now and
            then gives the one's program for the other.
        batch: what is scored.
        strategy: of the decoder.
    """
    limit = model.config.data.max_tokens
    encoded = encode(model, params, batch)
    return strategy.decode(
        bind_decoder(model, params, encoded), jnp.asarray(batch.index) >= 0, limit
    )


@functools.partial(jax.jit, static_argnums=0)
def ctc_greedy(model: SpeechLlama, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The encoder's own transcript: best class a frame, repeats merged, blanks dropped."""
    return ctc_labels(encode(model, params, batch))


def ctc_labels(encoded: Encoded) -> tuple[jax.Array, jax.Array]:
    """`ctc_greedy` of audio already encoded."""
    return best_labels(encoded.ctc_logits, encoded.ctc_length)
