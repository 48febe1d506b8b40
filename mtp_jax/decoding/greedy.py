"""Greedy decoding: one token per decoder call, the measure of every other strategy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions
from mtp_jax.decoding.text import Emitted, most_likely
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Greedy:
    """The most likely next token, until EOS: N tokens take exactly N calls.

    Attributes:
        width: tokens per call; those beyond the first are padding. Verification computes at width
            M, and a product of another width may differ in the last bits, so the exact comparison
            is with greedy at width M.
    """

    width: int = struct.field(pytree_node=False, default=1)

    @property
    def name(self) -> str:
        """As in the registry."""
        return "greedy"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does."""
        first_only = jnp.arange(self.width) == 0
        one = jnp.ones(active.shape, jnp.int32)

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            running = ~state.text.finished
            fed = jnp.where(first_only, state.token[:, None], 0)
            hidden, cache = model.extend(fed, running.astype(jnp.int32), state.cache)
            # All positions, as a narrower product may differ in the last bits.
            tokens, log_probs = most_likely(model.next_token(hidden))
            text, _ = state.text.emit(tokens[:, :1], log_probs[:, :1], one, model.eos)
            return _State(
                text=text,
                token=tokens[:, 0],
                cache=cache,
                calls=state.calls + running,
                steps=state.steps + 1,
            )

        hidden, cache = model.prefill(max_tokens)
        token, log_prob = most_likely(model.next_token(hidden))
        text, _ = Emitted.empty(active, max_tokens).emit(
            token[:, None], log_prob[:, None], one, model.eos
        )
        start = _State(
            text=text,
            token=token,
            cache=cache,
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
        )
        end = jax.lax.while_loop(unfinished, step, start)
        no_drafts = jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        return Decoded(
            tokens=end.text.tokens,
            log_probs=end.text.log_probs,
            length=end.text.length,
            calls=end.calls,
            proposed=no_drafts,
            accepted=no_drafts,
            loop_steps=end.steps,
            call=end.text.call,
        )


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        text: emitted so far, `token` included.
        token: int32[B], emitted last and not yet fed.
        cache: of everything fed.
        calls: int32[B]; `steps`: int32.
    """

    text: Emitted
    token: jax.Array
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
