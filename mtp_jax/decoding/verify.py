"""Verification decoding: the drafts of one call are checked by the next. Output equals greedy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, Emitted, Model, at, most_likely, tested
from mtp_jax.nn.cache import KVCache


@struct.dataclass
class Verify:
    """Each call is fed the M drafts of the last and keeps those that head 1 agrees with.

    Draft 1 came from head 1 and is certain. Draft i + 1 is accepted if head 1, at draft i, says the
    same; head 1 at the last accepted draft gives draft 1 of the next block, emitted there and then.
    So a call emits what head 1 says at draft 1 and at each accepted draft: 1 to M tokens, at best
    1 + ceil((N - 1) / M) calls for N tokens. (arXiv 2409.08148; after Stern et al., 2018.)
    """

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            going, text, drafts = ~state.text.finished, state.text, state.drafts
            fed = jnp.where(going, model.heads, 0)
            hidden, cache = model.extend(drafts, fed, state.cache)
            said = most_likely(model.next_token(hidden))
            agrees = said[:, :-1] == drafts[:, 1:]
            kept = 1 + jnp.sum(jnp.cumprod(agrees, axis=1), axis=1, dtype=jnp.int32)
            over = jnp.cumsum(text.ends(said, model.eos), axis=1) > 0
            over = jnp.pad(over[:, :-2], ((0, 0), (1, 0)))[:, : agrees.shape[1]]
            tried = tested(agrees, over) & going[:, None]
            text, _ = text.emit(said, kept, model.eos)
            last = jnp.take_along_axis(said, kept[:, None] - 1, axis=1)[:, 0]
            return _State(
                text=text,
                drafts=propose(at(hidden, kept - 1), last, text),
                cache=cache.shortened(jnp.where(going, model.heads - kept, 0)),
                calls=state.calls + going,
                proposed=state.proposed + tried,
                accepted=state.accepted + (tried & agrees),
                steps=state.steps + 1,
            )

        def propose(hidden: jax.Array, first: jax.Array, text: Emitted) -> jax.Array:
            """int32[B, M]: `first`, and the drafts behind it."""
            drafts = model.draft(hidden, first, text)
            return jnp.concatenate([first[:, None], drafts.tokens], axis=1)

        hidden, cache = model.prefill(max_tokens)
        first = most_likely(model.next_token(hidden))
        text, _ = Emitted.nothing(active, max_tokens).emit(
            first[:, None], jnp.ones_like(first), model.eos
        )
        none = jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        start = _State(
            text=text,
            drafts=propose(hidden, first, text),
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


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        text: emitted so far, the first draft included.
        drafts: int32[B, M], not yet fed; the first is certain.
        cache: of everything fed and accepted.
        calls: int32[B].
        proposed, accepted: int32[B, M - 1].
        steps: int32.
    """

    text: Emitted
    drafts: jax.Array
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
