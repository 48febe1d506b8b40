"""Greedy's text by all drafts that a model has, with wide calls while they save time."""

from __future__ import annotations

import jax
from flax import struct

from mtp_jax.decoding.drafts import MIN_PROBABILITY, draft_source
from mtp_jax.decoding.greedy import Greedy
from mtp_jax.decoding.interface import Decoded, DecoderFunctions
from mtp_jax.decoding.pace import Pace
from mtp_jax.decoding.verify import verify


@struct.dataclass
class Auto:
    """Verification while its calls give more than they cost, and greedy decoding in between.

    Drafts come from the CTC hypothesis and the heads, from one of them, or from none, as the model
    has them. The text is that of exact arithmetic's greedy decoding: calls of both widths take part
    in it, so that it has no one width whose last bits it shares.

    Attributes:
        ctc_width: S, tokens per call where drafts are read off the CTC hypothesis.
        min_probability: as in `Verify`.
        cost: what a wide call costs, in narrow ones; at 1 or below every call is wide. A `Runner`
            measures it.
        gain: tokens that a wide call gave each row of the batches before this one; 0 if none was.
    """

    ctc_width: int = struct.field(pytree_node=False, default=16)
    min_probability: float = struct.field(pytree_node=False, default=MIN_PROBABILITY)
    cost: float | jax.Array = 1.0
    gain: float | jax.Array = 0.0

    @property
    def name(self) -> str:
        """As in the registry."""
        return "auto"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does."""
        by_ctc = model.ctc_hypothesis is not None
        if not by_ctc and model.heads == 1:
            return Greedy().decode(model, active, max_tokens)
        width, joint = self.ctc_width if by_ctc else 0, by_ctc and model.heads > 1
        source = draft_source(model, width, joint, self.min_probability)
        return verify(model, source, active, max_tokens, Pace.start(self.cost, self.gain))
