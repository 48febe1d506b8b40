"""Drafts of serial heads: each from the token that the head before it drafted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding import Drafts
from mtp_jax.decoding.text import most_likely
from mtp_jax.models.recogniser import Encoded, Recogniser, call


@struct.dataclass
class _Drafting:
    """Loop state.

    Attributes:
        step: int32, heads that have drafted.
        state: [B, D], of the last of them; `token`: int32[B], which it drafted.
        log_prob: float32[B], of all drafts of a row being right; -inf where none is wanted.
        drafts: so far.
    """

    step: jax.Array
    state: jax.Array
    token: jax.Array
    log_prob: jax.Array
    drafts: Drafts


def draft_serially(
    model: Recogniser,
    params: Any,
    encoded: Encoded,
    hidden: jax.Array,
    last: jax.Array,
    wanted: jax.Array,
    min_probability: float,
) -> Drafts:
    """`DecoderFunctions.draft` of serial heads.

    The loop ends where the drafts of no row are likely enough. Each row counts its own, and so has
    those that it has alone.
    """
    shape = len(last), model.config.heads.count - 1
    least = jnp.log(min_probability)

    def unfinished(at: _Drafting) -> jax.Array:
        more = at.step < shape[1]
        # Without the second condition the compiler knows how often the loop runs, and costs it so.
        return more & jnp.any(at.log_prob >= least) if min_probability else more

    def step(at: _Drafting) -> _Drafting:
        state, logits = call(Recogniser.next_draft, model, params, encoded, at.state, at.token)
        place, log_prob = most_likely(logits)
        token = call(Recogniser.draft_tokens, model, params, place)
        tokens, probabilities, drafted = at.drafts
        return _Drafting(
            step=at.step + 1,
            state=state,
            token=token,
            log_prob=at.log_prob + log_prob,
            drafts=Drafts(
                tokens.at[:, at.step].set(token),
                probabilities.at[:, at.step].set(jnp.exp(log_prob)),
                drafted + (wanted & (at.log_prob >= least)),
            ),
        )

    nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32)
    start = _Drafting(
        step=jnp.int32(0),
        state=call(Recogniser.of_later_heads, model, params, hidden),
        token=last,
        log_prob=jnp.where(wanted, 0.0, -jnp.inf),
        drafts=Drafts(*nothing),
    )
    return jax.lax.while_loop(unfinished, step, start).drafts
