"""Verification decoding: each call checks the drafts of the last. The output equals greedy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import MIN_PROBABILITY, DraftSource, draft_source
from mtp_jax.decoding.interface import Decoded, DecoderFunctions
from mtp_jax.decoding.pace import Pace
from mtp_jax.decoding.text import Emitted, most_likely
from mtp_jax.decoding.verify_loop import Verification, verify_loop


@struct.dataclass
class Verify:
    """Each call is fed the drafts of the last and accepts those that head 1 agrees with.

    At best 1 + ceil((N - 1) / S) calls, S tokens wide, for N tokens: see decoding/verify_loop.py.

    Attributes:
        ctc_width: 0 takes the drafts of heads 2..M, and S is M. Otherwise it is S, and the drafts
            are the CTC hypothesis, whatever M is; a model without one raises `DraftsError`.
        joint: where the drafts are the CTC hypothesis, the heads draft behind a token that it does
            not expect.
        min_probability: serial heads draft no further once the drafts so far are all right with a
            probability below it.
    """

    ctc_width: int = struct.field(pytree_node=False, default=0)
    joint: bool = struct.field(pytree_node=False, default=False)
    min_probability: float = struct.field(pytree_node=False, default=MIN_PROBABILITY)

    @property
    def name(self) -> str:
        """As in the registry."""
        if not self.ctc_width:
            return "verify"
        return "verify_joint" if self.joint else "verify_ctc"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does."""
        source = draft_source(model, self.ctc_width, self.joint, self.min_probability)
        return verify(model, source, active, max_tokens)


def verify(
    model: DecoderFunctions,
    source: DraftSource,
    active: jax.Array,
    max_tokens: int,
    pace: Pace | None = None,
) -> Decoded:
    """Decodes as `Strategy.decode` says, by drafts of `source`.

    Args:
        model, active, max_tokens: as there.
        source: of the drafts.
        pace: says which calls are wide; None makes all of them wide.
    """
    hidden, cache = model.prefill(max_tokens)
    first, log_prob = most_likely(model.next_token(hidden))
    text, _ = Emitted.empty(active, max_tokens).emit(
        first[:, None], log_prob[:, None], jnp.ones(active.shape, jnp.int32), model.eos
    )
    start = Verification.start(source, text, hidden, first, cache, pace=pace)
    end = verify_loop(model, source, start)
    return Decoded(
        tokens=end.text.tokens,
        log_probs=end.text.log_probs,
        length=end.text.length,
        calls=end.calls + active,
        proposed=end.proposed,
        accepted=end.accepted,
        loop_steps=end.steps + 1,
        call=end.text.call,
        pace=end.pace,
    )
