"""Threshold decoding: a call emits drafts up to the first head that is not confident."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions
from mtp_jax.decoding.text import Emitted, most_likely, select_position, tested
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Threshold:
    """Head 1's token always, then those of heads 2, 3, ... while their probability is >= tau.

    All tokens that a call emits are fed to the next: at best ceil(N / M) calls for N tokens. The
    output may differ from greedy's. (arXiv 2409.08148; that the run ends at the first head below
    tau is our reading.)

    Attributes:
        tau: a leaf: sweeping it compiles nothing anew. Above 1 the strategy is greedy.
    """

    tau: jax.Array | float = 0.9

    @property
    def name(self) -> str:
        """As in the registry."""
        return "threshold"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does."""

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            running = ~state.text.finished
            fed = jnp.where(running, state.fed, 0)
            hidden, cache = model.extend(state.block, fed, state.cache)
            state = dataclasses.replace(
                state, cache=cache, calls=state.calls + running, steps=state.steps + 1
            )
            return emit(select_position(hidden, jnp.maximum(state.fed - 1, 0)), state)

        def emit(hidden: jax.Array, state: _State) -> _State:
            """Emits the tokens that the heads at `hidden` [B, D] are confident of."""
            running = ~state.text.finished[:, None]
            first, log_prob = most_likely(model.next_token(hidden))
            drafts = model.draft(hidden, first, running[:, 0], 0.0)
            block = jnp.concatenate([first[:, None], drafts.tokens], axis=1)
            log_probs = jnp.concatenate([log_prob[:, None], jnp.log(drafts.probabilities)], axis=1)
            confident = drafts.probabilities >= self.tau
            count = 1 + jnp.sum(jnp.cumprod(confident, axis=1), axis=1, dtype=jnp.int32)
            ended = jnp.cumsum(state.text.ends(block, model.eos), axis=1)[:, :-1] > 0
            proposed = tested(confident, ended) & running
            text, _ = state.text.emit(block, log_probs, count, model.eos)
            return dataclasses.replace(
                state,
                text=text,
                block=block,
                fed=text.length - state.text.length,
                proposed=state.proposed + proposed,
                accepted=state.accepted + (proposed & confident),
            )

        rows, no_drafts = active.shape[0], jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        hidden, cache = model.prefill(max_tokens)
        start = emit(
            hidden,
            _State(
                text=Emitted.empty(active, max_tokens),
                block=jnp.zeros((rows, model.heads), jnp.int32),
                fed=jnp.zeros(rows, jnp.int32),
                cache=cache,
                calls=active.astype(jnp.int32),
                proposed=no_drafts,
                accepted=no_drafts,
                steps=jnp.int32(1),
            ),
        )
        end = jax.lax.while_loop(unfinished, step, start)
        return Decoded(
            tokens=end.text.tokens,
            log_probs=end.text.log_probs,
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
        block: int32[B, M], emitted last; `fed`: int32[B], how many of its tokens are to be fed.
        cache: of everything fed.
        calls: int32[B].
        proposed, accepted: int32[B, M - 1].
        steps: int32.
    """

    text: Emitted
    block: jax.Array
    fed: jax.Array
    cache: KVCache
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    steps: jax.Array
