"""Greedy's text by all drafts that a model has, with wide calls while they save time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
        pace: what calls cost and have given so far. A `Runner` measures the cost, and gives each
            batch the pace of the one before.
    """

    ctc_width: int = struct.field(pytree_node=False, default=16)
    min_probability: float = struct.field(pytree_node=False, default=MIN_PROBABILITY)
    pace: Pace = struct.field(default_factory=Pace.of)

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
        return verify(model, source, active, max_tokens, jax.tree.map(jnp.asarray, self.pace))
