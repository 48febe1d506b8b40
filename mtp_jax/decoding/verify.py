"""Verification decoding: the drafts of one call are checked by the next. Output equals greedy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import draft_source
from mtp_jax.decoding.interface import Decoded, DecoderFunctions, Emitted, most_likely
from mtp_jax.decoding.verify_loop import Verification, verify_loop


@struct.dataclass
class Verify:
    """Each call is fed the drafts of the last and keeps those that head 1 agrees with.

    At best 1 + ceil((N - 1) / S) calls, S tokens wide, for N tokens: decoding/verify_loop.py.

    Attributes:
        ctc_width: 0 takes the drafts of heads 2..M, and S is M. Otherwise it is S, and what CTC
            reads is drafted, whatever M is; a model that reads none raises `DraftsError`.
    """

    ctc_width: int = struct.field(pytree_node=False, default=0)

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does."""
        source = draft_source(model, self.ctc_width)
        hidden, cache = model.prefill(max_tokens)
        first = most_likely(model.next_token(hidden))[:, None]
        text, _ = Emitted.nothing(active, max_tokens).emit(
            first, jnp.ones_like(first[:, 0]), model.eos
        )
        end = verify_loop(model, source, Verification.of(source, text, hidden, first, cache))
        return Decoded(
            tokens=end.text.tokens,
            length=end.text.length,
            calls=end.calls + active,
            proposed=end.proposed,
            accepted=end.accepted,
            loop_steps=end.steps + 1,
            call=end.text.call,
        )
