"""Verification decoding: the drafts of one call are checked by the next. Output equals greedy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, Emitted, Model, at, most_likely, tested
from mtp_jax.decoding.reading import follow, nothing_said, read_on
from mtp_jax.nn.cache import KVCache


class DraftsError(ValueError):
    """CTC reads in other tokens than the decoder's."""

    def __init__(self) -> None:
        super().__init__(
            "verify_ctc drafts what CTC reads, and this model's CTC has labels of its own: take"
            " verify"
        )


@struct.dataclass
class Verify:
    """Each call is fed the drafts of the last and keeps those that head 1 agrees with.

    Draft 1 came from head 1 and is certain. Draft i + 1 is accepted if head 1, at draft i, says the
    same; head 1 at the last accepted draft gives draft 1 of the next block, emitted there and then.
    So a call S wide emits what head 1 says at draft 1 and at each accepted draft: 1 to S tokens, at
    best 1 + ceil((N - 1) / S) calls for N tokens. (arXiv 2409.08148; after Stern et al., 2018.)

    Attributes:
        ctc_width: 0 takes the drafts of heads 2..M, and S is M. Otherwise it is S, and what CTC
            reads is drafted, whatever M is; a model that reads none raises `DraftsError`.
    """

    ctc_width: int = struct.field(pytree_node=False, default=0)

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        source = _reading(model, self.ctc_width) if self.ctc_width else _heads(model)

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            going, text, drafts = ~state.text.finished, state.text, state.drafts
            fed = jnp.where(going, source.width, 0)
            hidden, cache = model.extend(drafts, fed, state.cache)
            said = most_likely(model.next_token(hidden))
            agrees = said[:, :-1] == drafts[:, 1:]
            kept = 1 + jnp.sum(jnp.cumprod(agrees, axis=1), axis=1, dtype=jnp.int32)
            over = jnp.cumsum(text.ends(said, model.eos), axis=1) > 0
            over = jnp.pad(over[:, :-2], ((0, 0), (1, 0)))[:, : agrees.shape[1]]
            tried = tested(agrees, over) & going[:, None]
            text, _ = text.emit(said, kept, model.eos)
            later, known = source.draft(state.known, at(hidden, kept - 1), said, kept)
            return _State(
                text=text,
                drafts=later,
                known=known,
                cache=cache.shortened(jnp.where(going, source.width - kept, 0)),
                calls=state.calls + going,
                proposed=state.proposed + tried,
                accepted=state.accepted + (tried & agrees),
                steps=state.steps + 1,
            )

        hidden, cache = model.prefill(max_tokens)
        first = most_likely(model.next_token(hidden))[:, None]
        one = jnp.ones(first.shape[0], jnp.int32)
        text, _ = Emitted.nothing(active, max_tokens).emit(first, one, model.eos)
        drafts, known = source.draft(source.start, hidden, first, one)
        none = jnp.zeros((active.shape[0], source.width - 1), jnp.int32)
        start = _State(
            text=text,
            drafts=drafts,
            known=known,
            cache=cache,
            calls=active.astype(jnp.int32),
            proposed=none,
            accepted=none,
            steps=jnp.int32(1),
        )
        end = jax.lax.while_loop(unfinished, step, start)
        return Decoded(
            tokens=end.text.tokens,
            length=end.text.length,
            calls=end.calls,
            proposed=end.proposed,
            accepted=end.accepted,
            loop_steps=end.steps,
            call=end.text.call,
        )


class _Source(NamedTuple):
    """Where drafts come from.

    Attributes:
        width: S, tokens fed a call.
        start: what it knows of a text before its first token.
        draft: (known, hidden [B, D] at the last accepted position, int32[B, S] tokens that head 1
            says, of which the first int32[B] join the text) -> (int32[B, S], the last of these and
            the drafts behind it; known).
    """

    width: int
    start: Any
    draft: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def _last(said: jax.Array, count: jax.Array) -> jax.Array:
    """int32[B, 1]."""
    return jnp.take_along_axis(said, count[:, None] - 1, axis=1)


def _heads(model: Model) -> _Source:
    def draft(
        known: Any, hidden: jax.Array, said: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Any]:
        first = _last(said, count)
        drafts = model.draft(hidden, first[:, 0])
        return jnp.concatenate([first, drafts.tokens], axis=1), known

    return _Source(model.heads, (), draft)


def _reading(model: Model, width: int) -> _Source:
    reading = model.reading
    if reading is None:
        raise DraftsError

    def draft(
        known: jax.Array, hidden: jax.Array, said: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del hidden
        known = follow(reading, known, said, count)
        drafts = read_on(reading, known, width - 1, model.eos)
        return jnp.concatenate([_last(said, count), drafts], axis=1), known

    return _Source(width, nothing_said(reading), draft)


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        text: emitted so far, the first draft included.
        drafts: int32[B, S], not yet fed; the first is certain.
        known: of the text, by the source of the drafts.
        cache: of everything fed and accepted.
        calls: int32[B].
        proposed, accepted: int32[B, S - 1].
        steps: int32.
    """

    text: Emitted
    drafts: jax.Array
    known: Any
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
