"""Decoding strategies as ``lax.while_loop`` programs over callables; they import no model."""

from mtp_jax.decoding.beam import BeamSearch
from mtp_jax.decoding.drafts import DraftsError
from mtp_jax.decoding.greedy import Greedy
from mtp_jax.decoding.interface import Decoded, Drafter, Drafts, Emitted, Model, NBest, Strategy
from mtp_jax.decoding.kbest import PrefixBeam
from mtp_jax.decoding.threshold import Threshold
from mtp_jax.decoding.verify import Verify

__all__ = [
    "BeamSearch",
    "Decoded",
    "Drafter",
    "Drafts",
    "DraftsError",
    "Emitted",
    "Greedy",
    "Model",
    "NBest",
    "PrefixBeam",
    "Strategy",
    "Threshold",
    "Verify",
]
