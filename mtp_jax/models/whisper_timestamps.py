"""The rules of Whisper's timestamps (Radford et al., 2022; `ApplyTimestampRules` of its code).

A text is made of phrases, each between two tokens of time: ``<|0.00|> first <|1.20|><|1.50|> second
<|3.00|>``. It begins with a time, times do not decrease, and one is chosen where all times together
are likelier than the likeliest other token.

What the rules need to know of the tokens so far stands in `RULES` features of the hidden state, so
that the next token stays a function of that alone, whatever strategy asks for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

RULES = 3  # features: two digits of the first time that may follow; whether no text may
_BASE = 64  # of the digits, which bfloat16 holds exactly
_NO_TIME = _BASE**2 - 1  # behind all times
_NEVER = float(np.finfo(np.float32).min)


def rule_features(tokens: jax.Array, slot: jax.Array, special: WhisperTokens) -> jax.Array:
    """int32[B, S, RULES] of what is predicted behind some tokens.

    Args:
        tokens: int32[B, C], of the text; negative ones are before it, or not there.
        slot: int32[B, S], of the last token that counts; of an empty text -1.
        special: tells times from other tokens.
    """
    time = tokens - special.first_time
    seen = jnp.arange(tokens.shape[1]) <= slot[..., None]
    latest = jnp.max(jnp.where(seen, time[:, None], -1), axis=-1)

    def token_at(slot: jax.Array) -> jax.Array:
        found = jnp.take_along_axis(tokens, jnp.maximum(slot, 0), axis=1)
        return jnp.where(slot >= 0, found, -1)

    last, before = token_at(slot), token_at(slot - 1)
    at_time = last >= special.first_time
    has_text = (before >= 0) & (before < special.first_time)
    ended, begun = at_time & has_text, at_time & ~has_text
    # The next phrase may begin when this one ends; else no time comes twice.
    earliest = jnp.where(latest < 0, 0, latest + ~ended)
    earliest = jnp.where(begun, _NO_TIME, earliest)
    return jnp.stack([earliest // _BASE, earliest % _BASE, ended.astype(jnp.int32)], axis=-1)


def apply_rules(
    logits: jax.Array, features: jax.Array, first: jax.Array, special: WhisperTokens, eos: int
) -> jax.Array:
    """float32[..., V] logits, the lowest where the rules forbid a token.

    Args:
        logits: float32[..., V], of tokens that are suppressed the lowest already: the sum over all
            times is compared with what may follow.
        features: [..., RULES].
        first: bool[..., 1], whether the first token of the text is predicted.
        special: its tokens; `eos`: the token that ends a text.
    """
    features = features.astype(jnp.int32)
    token = np.arange(logits.shape[-1])
    time = token - special.first_time
    is_time = time >= 0
    earliest = features[..., :1] * _BASE + features[..., 1:2]
    never = is_time & (time < earliest) | (token == special.no_timestamps)
    never |= first & (~is_time | (time > special.latest_beginning))
    never |= (features[..., 2:] > 0) & (token < eos)
    logits = jnp.where(never, _NEVER, logits)
    times = jax.nn.logsumexp(logits[..., special.first_time :], axis=-1, keepdims=True)
    others = jnp.max(logits[..., : special.first_time], axis=-1, keepdims=True)
    return jnp.where(~is_time & (times > others), _NEVER, logits)
