"""The loop of verification and of prefix beam search: head 1 accepts or rejects blocks of drafts.

Draft 1 of a block came from head 1 and is certain. Draft i + 1 is accepted if head 1 predicts it at
draft i. Head 1 at the last accepted draft predicts draft 1 of the next block, which is emitted at
once. A call S wide emits head 1's prediction at draft 1 and at each accepted draft: 1 to S tokens,
at best ceil((N - 1) / S) calls for N - 1 tokens. (arXiv 2409.08148; after Stern et al., 2018.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import DraftSource
from mtp_jax.decoding.interface import DecoderFunctions
from mtp_jax.decoding.pace import Pace
from mtp_jax.decoding.text import Emitted, most_likely, select_position, tested
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Alternatives:
    """Other tokens that head 1 might have predicted at each position of a text.

    Attributes:
        tokens: int32[B, L, A], the most likely ones.
        log_probs: float32[B, L, A], -inf where there is none.
    """

    tokens: jax.Array
    log_probs: jax.Array

    @classmethod
    def empty(cls, rows: int, max_tokens: int, count: int) -> Alternatives:
        """Of an empty text; A is `count`."""
        shape = rows, max_tokens, count
        return cls(jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf))

    def put(self, slots: jax.Array, logits: jax.Array) -> Alternatives:
        """With the A best of float32[B, S, V] `logits` behind the best, in int32[B, S] `slots`."""
        best, tokens = jax.lax.top_k(logits, self.tokens.shape[2] + 1)
        log_probs = best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        at = jnp.arange(slots.shape[0])[:, None], slots
        return Alternatives(
            tokens=self.tokens.at[at].set(tokens[..., 1:], mode="drop"),
            log_probs=self.log_probs.at[at].set(log_probs[..., 1:], mode="drop"),
        )


@struct.dataclass
class Verification:
    """Loop state.

    Attributes:
        text: emitted so far, the first draft included.
        hidden: [B, D], that predicted the last token; None where no draft depends on it.
        last: int32[B], the last token, which is not yet fed.
        drafter_state: of the text, as the source of the drafts keeps it.
        cache: of everything before the last token.
        calls: int32[B].
        proposed, accepted: int32[B, S - 1].
        steps: int32.
        pace: of calls, where some may be one token wide.
        alternatives: at the positions of the text, where they are wanted.
    """

    text: Emitted
    hidden: jax.Array | None
    last: jax.Array
    drafter_state: Any
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
    pace: Pace | None = None
    alternatives: Alternatives | None = None

    @classmethod
    def start(
        cls,
        source: DraftSource,
        text: Emitted,
        hidden: jax.Array | None,
        last: jax.Array,
        cache: KVCache,
        alternatives: Alternatives | None = None,
        pace: Pace | None = None,
    ) -> Verification:
        """Continues a text.

        Args:
            source: of the drafts.
            text: its last token is not yet fed.
            hidden: [B, D], that predicted it; None if `source` does not read it.
            last: int32[B], that token.
            cache: of everything before it.
            alternatives: at the positions of the text.
            pace: None makes every call wide.
        """
        rows = len(last)
        one = jnp.ones(rows, jnp.int32)
        no_drafts, zero = jnp.zeros((rows, source.width - 1), jnp.int32), jnp.zeros(rows, jnp.int32)
        return cls(
            text=text,
            hidden=hidden if source.reads_hidden else None,
            last=last,
            drafter_state=source.advance(source.start, last[:, None], one),
            cache=cache,
            calls=zero,
            proposed=no_drafts,
            accepted=no_drafts,
            steps=jnp.int32(0),
            pace=pace,
            alternatives=alternatives,
        )


def verify_loop(
    model: DecoderFunctions,
    source: DraftSource,
    start: Verification,
    should_prune: Callable[[Verification], jax.Array] | None = None,
) -> Verification:
    """Extends every text until it is finished, or until bool[B] `should_prune` says so."""

    def unfinished(state: Verification) -> jax.Array:
        return jnp.any(~state.text.finished)

    def step(state: Verification, wide: bool = True) -> Verification:
        running, text = ~state.text.finished, state.text
        if wide:
            drafts, drafted = source.draft(state.drafter_state, state.hidden, state.last, running)
        else:
            drafts, drafted = jnp.zeros((len(running), 0), jnp.int32), jnp.zeros_like(state.calls)
        block = jnp.concatenate([state.last[:, None], drafts], axis=1)
        fed = jnp.where(running, 1 + drafted, 0)
        hidden, cache = model.extend(block, fed, state.cache)
        logits = model.next_token(hidden)
        predicted, log_probs = most_likely(logits)
        real = jnp.arange(drafts.shape[1]) < drafted[:, None]
        agrees = (predicted[:, :-1] == drafts) & real
        count = 1 + jnp.sum(jnp.cumprod(agrees, axis=1), axis=1, dtype=jnp.int32)
        ended = jnp.cumsum(text.ends(predicted, model.eos), axis=1) > 0
        ended = jnp.pad(ended[:, :-2], ((0, 0), (1, 0)))[:, : agrees.shape[1]]
        proposed = tested(agrees, ended) & real & running[:, None]
        untested = ((0, 0), (0, source.width - 1 - drafts.shape[1]))
        longer, slots = text.emit(predicted, log_probs, count, model.eos)
        alternatives = state.alternatives
        if alternatives is not None:
            alternatives = alternatives.put(slots, logits)
        after = Verification(
            text=longer,
            hidden=select_position(hidden, count - 1) if source.reads_hidden else None,
            last=jnp.take_along_axis(predicted, count[:, None] - 1, axis=1)[:, 0],
            drafter_state=source.advance(state.drafter_state, predicted, count),
            cache=cache.rollback(jnp.where(running, fed - count, 0)),
            calls=state.calls + running,
            proposed=state.proposed + jnp.pad(proposed, untested),
            accepted=state.accepted + jnp.pad(proposed & agrees, untested),
            steps=state.steps + 1,
            pace=_next_pace(state.pace, wide, longer.length - text.length, running),
            alternatives=alternatives,
        )
        if should_prune is None:
            return after
        finished = after.text.finished | should_prune(after)
        return dataclasses.replace(after, text=dataclasses.replace(after.text, finished=finished))

    if start.pace is None:
        return jax.lax.while_loop(unfinished, step, start)

    def run(state: Verification, wide: bool) -> Verification:
        def goes_on(state: Verification) -> jax.Array:
            assert state.pace is not None
            return unfinished(state) & (state.pace.wide == wide)

        return jax.lax.while_loop(goes_on, functools.partial(step, wide=wide), state)

    return jax.lax.while_loop(unfinished, lambda state: run(run(state, True), False), start)


def _next_pace(
    pace: Pace | None, wide: bool, emitted: jax.Array, running: jax.Array
) -> Pace | None:
    if pace is None:
        return None
    return pace.after_wide(emitted, running) if wide else pace.after_narrow()
