"""CTC's best path: the encoder's own transcript, without a decoder call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions


@struct.dataclass
class CtcGreedy:
    """The best class per frame, repeats merged, blanks dropped (Graves et al., 2006).

    The tokens are labels of CTC's own tokenizer. There are no decoder calls, and no probabilities
    of tokens: those of an alignment stand in for them (`mtp_jax.transcription.alignment`).
    """

    @property
    def name(self) -> str:
        """As in the registry."""
        return "ctc"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; `max_tokens` does not limit CTC."""
        del max_tokens
        if model.ctc_labels is None:
            raise ValueError("this model has no CTC head: take another strategy than ctc")
        tokens, length = model.ctc_labels
        no_drafts = jnp.zeros((len(active), model.heads - 1), jnp.int32)
        return Decoded(
            tokens=tokens,
            log_probs=jnp.zeros(tokens.shape),
            length=jnp.where(active, length, 0),
            calls=jnp.zeros_like(length),
            proposed=no_drafts,
            accepted=no_drafts,
            loop_steps=jnp.int32(0),
            call=jnp.zeros_like(tokens),
        )
