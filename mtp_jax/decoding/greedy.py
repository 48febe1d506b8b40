"""Greedy decoding: one token a decoder call, the measure of every other strategy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions, Emitted, most_likely
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class Greedy:
    """The most likely next token, until EOS: N tokens take exactly N calls.

    Attributes:
        width: tokens a call is wide; those beyond the first are padding. Verification computes at
            width M, and a product of another width may differ in the last bits, so the exact
            comparison is with greedy at width M.
    """

    width: int = struct.field(pytree_node=False, default=1)

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        first_only = jnp.arange(self.width) == 0

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(~state.text.finished)

        def step(state: _State) -> _State:
            going = ~state.text.finished
            fed = jnp.where(first_only, state.token[:, None], 0)
            hidden, cache = model.extend(fed, going.astype(jnp.int32), state.cache)
            token = most_likely(model.next_token(hidden))[:, 0]
            text, _ = state.text.emit(token[:, None], jnp.ones_like(token), model.eos)
            return _State(
                text=text,
                token=token,
                cache=cache,
                calls=state.calls + going,
                steps=state.steps + 1,
            )

        hidden, cache = model.prefill(max_tokens)
        token = most_likely(model.next_token(hidden))
        text = Emitted.nothing(active, max_tokens)
        text, _ = text.emit(token[:, None], jnp.ones_like(token), model.eos)
        start = _State(
            text=text,
            token=token,
            cache=cache,
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
        )
        end = jax.lax.while_loop(unfinished, step, start)
        none = jnp.zeros((active.shape[0], model.heads - 1), jnp.int32)
        return Decoded(
            tokens=end.text.tokens,
            length=end.text.length,
            calls=end.calls,
            proposed=none,
            accepted=none,
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
        calls: int32[B]; steps: int32.
    """

    text: Emitted
    token: jax.Array
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
