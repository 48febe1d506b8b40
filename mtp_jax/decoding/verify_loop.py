"""The loop that verification and prefix beam search share: text that head 1 agrees with, in blocks.

Draft 1 of a block came from head 1 and is certain. Draft i + 1 is accepted if head 1, at draft i,
says the same; head 1 at the last accepted draft gives draft 1 of the next block, emitted there and
then. So a call S wide emits what head 1 says at draft 1 and at each accepted draft: 1 to S tokens,
at best ceil((N - 1) / S) calls for N - 1 tokens. (arXiv 2409.08148; after Stern et al., 2018.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import DraftSource
from mtp_jax.decoding.interface import DecoderFunctions, Emitted, at, most_likely, tested
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Likelihood:
    """What head 1 makes of a text, and of other tokens in the places of its own.

    Attributes:
        log_probs: float32[B, L] of the text's tokens; 0 beyond its length.
        alternatives: int32[B, L, A], the likeliest other tokens in each place.
        alternative_log_probs: float32[B, L, A], -inf where there is none.
    """

    log_probs: jax.Array
    alternatives: jax.Array
    alternative_log_probs: jax.Array

    @classmethod
    def nothing(cls, rows: int, max_tokens: int, alternatives: int) -> Likelihood:
        """Of no text."""
        shape = rows, max_tokens, alternatives
        return cls(jnp.zeros(shape[:2]), jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf))

    def put(self, slots: jax.Array, logits: jax.Array) -> Likelihood:
        """With the best of float32[B, S, V] `logits`, and the next A, in int32[B, S] `slots`."""
        best, token = jax.lax.top_k(logits, self.alternatives.shape[2] + 1)
        best -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        place = jnp.arange(slots.shape[0])[:, None], slots
        return Likelihood(
            log_probs=self.log_probs.at[place].set(best[..., 0], mode="drop"),
            alternatives=self.alternatives.at[place].set(token[..., 1:], mode="drop"),
            alternative_log_probs=self.alternative_log_probs.at[place].set(
                best[..., 1:], mode="drop"
            ),
        )


@struct.dataclass
class Verification:
    """Loop state.

    Attributes:
        text: emitted so far, the first draft included.
        drafts: int32[B, S], not yet fed; the first is certain.
        drafter_state: of the text, by the source of the drafts.
        cache: of everything fed and accepted.
        calls: int32[B].
        proposed, accepted: int32[B, S - 1].
        steps: int32.
        likelihood: of the text, where it is wanted.
    """

    text: Emitted
    drafts: jax.Array
    drafter_state: Any
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
    likelihood: Likelihood | None = None

    @classmethod
    def of(
        cls,
        source: DraftSource,
        text: Emitted,
        hidden: jax.Array,
        last: jax.Array,
        cache: KVCache,
        likelihood: Likelihood | None = None,
    ) -> Verification:
        """From a text on.

        Args:
            source: of the drafts.
            text: its last token is not yet fed.
            hidden: [B, D], that predicted it.
            last: int32[B, 1], that token.
            cache: of everything before it.
            likelihood: of the text.
        """
        rows = last.shape[0]
        drafts, drafter_state = source.draft(source.start, hidden, last, jnp.ones(rows, jnp.int32))
        none = jnp.zeros((rows, source.width - 1), jnp.int32)
        zero = jnp.zeros(rows, jnp.int32)
        return cls(text, drafts, drafter_state, cache, zero, none, none, jnp.int32(0), likelihood)


def verify_loop(
    model: DecoderFunctions,
    source: DraftSource,
    start: Verification,
    should_prune: Callable[[Verification], jax.Array] | None = None,
) -> Verification:
    """Extends every text until it is finished, or until bool[B] `should_prune` says so."""

    def unfinished(state: Verification) -> jax.Array:
        return jnp.any(~state.text.finished)

    def step(state: Verification) -> Verification:
        going, text, drafts = ~state.text.finished, state.text, state.drafts
        fed = jnp.where(going, source.width, 0)
        hidden, cache = model.extend(drafts, fed, state.cache)
        logits = model.next_token(hidden)
        predicted = most_likely(logits)
        agrees = predicted[:, :-1] == drafts[:, 1:]
        kept = 1 + jnp.sum(jnp.cumprod(agrees, axis=1), axis=1, dtype=jnp.int32)
        over = jnp.cumsum(text.ends(predicted, model.eos), axis=1) > 0
        over = jnp.pad(over[:, :-2], ((0, 0), (1, 0)))[:, : agrees.shape[1]]
        tried = tested(agrees, over) & going[:, None]
        longer, gained = text.emit(predicted, kept, model.eos)
        likelihood = state.likelihood
        if likelihood is not None:
            offset = jnp.arange(source.width)
            slots = jnp.where(offset < gained[:, None], text.length[:, None] + offset, text.limit)
            likelihood = likelihood.put(slots, logits)
        later, drafter_state = source.draft(
            state.drafter_state, at(hidden, kept - 1), predicted, kept
        )
        after = Verification(
            text=longer,
            drafts=later,
            drafter_state=drafter_state,
            cache=cache.rollback(jnp.where(going, source.width - kept, 0)),
            calls=state.calls + going,
            proposed=state.proposed + tried,
            accepted=state.accepted + (tried & agrees),
            steps=state.steps + 1,
            likelihood=likelihood,
        )
        if should_prune is None:
            return after
        finished = after.text.finished | should_prune(after)
        return dataclasses.replace(after, text=dataclasses.replace(after.text, finished=finished))

    return jax.lax.while_loop(unfinished, step, start)
