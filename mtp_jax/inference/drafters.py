"""Drafters over a `SpeechLlama`: where the guesses behind head 1's token come from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.decoding import Drafter, Drafts
from mtp_jax.models.speech_llama import SpeechLlama, call


def from_heads(model: SpeechLlama, params: Any) -> Drafter:
    """Each of heads 2..M drafts its most likely token, independently of the others."""

    def draft(hidden: jax.Array, first: jax.Array) -> Drafts:
        del first
        logits = call(model, params, "draft_logits", hidden)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return Drafts(
            tokens=jnp.argmax(logits, axis=-1).astype(jnp.int32),
            probabilities=jnp.exp(jnp.max(logits, axis=-1) - log_z),
        )

    return draft
