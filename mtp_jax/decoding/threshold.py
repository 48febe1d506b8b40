"""Threshold decoding: a call's drafts are emitted for as long as the heads are confident."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions, Emitted, at, most_likely, tested
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Threshold:
    """Head 1's token always, then those of heads 2, 3, ... while their probability is >= tau.

    All tokens that a call emits are fed to the next: at best ceil(N / M) calls for N tokens. The
    output may differ from greedy's. (arXiv 2409.08148; that the run ends at the first head below
    tau is our reading.)

    Attributes:
        tau: a leaf: sweeping it compiles nothing anew. Above 1 it gives greedy.
    """

    tau: jax.Array | float = 0.9

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            going = ~state.text.finished
            fed = jnp.where(going, state.gained, 0)
            hidden, cache = model.extend(state.block, fed, state.cache)
            state = dataclasses.replace(
                state, cache=cache, calls=state.calls + going, steps=state.steps + 1
            )
            return choose(at(hidden, jnp.maximum(state.gained - 1, 0)), state)

        def choose(hidden: jax.Array, state: _State) -> _State:
            """Emits the tokens that `hidden` [B, D] is sure of."""
            going = ~state.text.finished[:, None]
            first = most_likely(model.next_token(hidden))
            drafts = model.draft(hidden, first)
            block = jnp.concatenate([first[:, None], drafts.tokens], axis=1)
            sure = drafts.probabilities >= self.tau
            count = 1 + jnp.sum(jnp.cumprod(sure, axis=1), axis=1, dtype=jnp.int32)
            over = jnp.cumsum(state.text.ends(block, model.eos), axis=1)[:, :-1] > 0
            tried = tested(sure, over) & going
            text, gained = state.text.emit(block, count, model.eos)
            return dataclasses.replace(
                state,
                text=text,
                block=block,
                gained=gained,
                proposed=state.proposed + tried,
                accepted=state.accepted + (tried & sure),
            )

        rows, none = active.shape[0], jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        hidden, cache = model.prefill(max_tokens)
        start = choose(
            hidden,
            _State(
                text=Emitted.nothing(active, max_tokens),
                block=jnp.zeros((rows, model.heads), jnp.int32),
                gained=jnp.zeros(rows, jnp.int32),
                cache=cache,
                calls=active.astype(jnp.int32),
                proposed=none,
                accepted=none,
                steps=jnp.int32(1),
            ),
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
        text: emitted so far, the block included.
        block: int32[B, M], emitted last and not yet fed; `gained`: int32[B], its real tokens.
        cache: of everything fed.
        calls: int32[B].
        proposed, accepted: int32[B, M - 1].
        steps: int32.
    """

    text: Emitted
    block: jax.Array
    gained: jax.Array
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
