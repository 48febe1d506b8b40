"""Decoding strategies as ``lax.while_loop`` programs over functions; they import no model.

What is named here is imported when it is first used: the registry brings no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_jax.decoding.alignment import DraftText as DraftText
    from mtp_jax.decoding.auto import Auto as Auto
    from mtp_jax.decoding.beam import BeamSearch as BeamSearch
    from mtp_jax.decoding.ctc_greedy import CtcGreedy as CtcGreedy
    from mtp_jax.decoding.drafts import DraftsError as DraftsError
    from mtp_jax.decoding.greedy import Greedy as Greedy
    from mtp_jax.decoding.interface import Decoded as Decoded
    from mtp_jax.decoding.interface import DecoderFunctions as DecoderFunctions
    from mtp_jax.decoding.interface import Drafts as Drafts
    from mtp_jax.decoding.interface import NBest as NBest
    from mtp_jax.decoding.interface import Strategy as Strategy
    from mtp_jax.decoding.kbest import PrefixBeam as PrefixBeam
    from mtp_jax.decoding.threshold import Threshold as Threshold
    from mtp_jax.decoding.verify import Verify as Verify

_HOME = {
    "Auto": "auto",
    "BeamSearch": "beam",
    "CtcGreedy": "ctc_greedy",
    "Decoded": "interface",
    "DecoderFunctions": "interface",
    "DraftText": "alignment",
    "Drafts": "interface",
    "DraftsError": "drafts",
    "Greedy": "greedy",
    "NBest": "interface",
    "PrefixBeam": "kbest",
    "Strategy": "interface",
    "Threshold": "threshold",
    "Verify": "verify",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
