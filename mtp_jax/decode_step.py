"""Waveforms to tokens: front end, encoder and a decoding strategy in one ``jit``."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax import drafters
from mtp_jax.data import Batch
from mtp_jax.decoding import Decoded, Model, Strategy
from mtp_jax.nn.ctc import best_labels
from mtp_jax.nn.speech_llama import Encoded, SpeechLlama, call
from mtp_jax.params import products_type
from mtp_jax.speech_features import speech_features


def encode(model: SpeechLlama, params: Any, batch: Batch) -> Encoded:
    """Runs front end and encoder over a batch."""
    encoded: Encoded = call(model, params, "encode", *speech_features(model, params, batch))
    return encoded


def view(model: SpeechLlama, params: Any, encoded: Encoded) -> Model:
    """`model` as the strategies see it, for audio already encoded.

    Args:
        model, params: the recogniser.
        encoded: its encoder's output.
    """
    return Model(
        prefill=lambda room: call(model, params, "prefill", encoded, room),
        extend=lambda *args: call(model, params, "extend", *args),
        next_token=lambda hidden: call(model, params, "next_token", hidden),
        later_tokens=lambda hidden: call(model, params, "draft_logits", hidden),
        draft=drafters.from_heads(model, params),
        heads=model.config.heads.count,
        eos=model.vocabulary.eos,
    )


@functools.partial(jax.jit, static_argnums=0)
def decode(model: SpeechLlama, params: Any, batch: Batch, strategy: Strategy) -> Decoded:
    """Decodes a batch of waveforms; rows with ``index`` -1 are filler."""
    limit = model.config.data.max_tokens
    params = products_type(params, model.config.train.dtype)  # once, not in every call
    encoded = encode(model, params, batch)
    return strategy.decode(view(model, params, encoded), jnp.asarray(batch.index) >= 0, limit)


@functools.partial(jax.jit, static_argnums=0)
def ctc_greedy(model: SpeechLlama, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The encoder's own transcript: best class a frame, repeats merged, blanks dropped.

    Returns:
        int32[B, T] tokens, left-aligned, and their int32[B] number.
    """
    return ctc_labels(encode(model, params, batch))


def ctc_labels(encoded: Encoded) -> tuple[jax.Array, jax.Array]:
    """`ctc_greedy` of audio already encoded."""
    return best_labels(encoded.ctc_logits, encoded.ctc_length)
