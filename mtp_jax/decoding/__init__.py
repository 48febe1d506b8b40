"""Decoding strategies as ``lax.while_loop`` programs over callables; they import no model."""

from mtp_jax.decoding.beam import BeamSearch
from mtp_jax.decoding.drafts import DraftsError
from mtp_jax.decoding.greedy import Greedy
from mtp_jax.decoding.interface import (
    Decoded,
    DecoderFunctions,
    Drafter,
    Drafts,
    Emitted,
    NBest,
    Strategy,
)
from mtp_jax.decoding.kbest import PrefixBeam
from mtp_jax.decoding.threshold import Threshold
from mtp_jax.decoding.verify import Verify

__all__ = [
    "BeamSearch",
    "Decoded",
    "DecoderFunctions",
    "Drafter",
    "Drafts",
    "DraftsError",
    "Emitted",
    "Greedy",
    "NBest",
    "PrefixBeam",
    "Strategy",
    "Threshold",
    "Verify",
]
