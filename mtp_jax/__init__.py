"""Speech-LLaMA with multi-token prediction (arXiv 2409.08148) in JAX.

Axes carry the same letter in every docstring, einsum and variable suffix:

    B utterances        T audio samples or frames   L text positions
    C cache slots       D model width               F feed-forward width
    N query heads       G key-value heads           H size of one attention head
    V vocabulary        M prediction heads          K hypotheses
    Z mel bins          S positions fed to one decoder call

Masks are ``bool`` and True where something real is. Prediction heads are numbered from 1;
head m predicts the token m places ahead, so head 1 is the decoder's own LM head.

    import mtp_jax
    transcript = mtp_jax.load("runs/mtp").transcribe("talk.mp3", strategy=mtp_jax.Verify())

What is named here is imported when it is first used: processes that only read data import the
package too, and need no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_jax.audio.reading import AudioError as AudioError
    from mtp_jax.decoding import BeamSearch as BeamSearch
    from mtp_jax.decoding import Greedy as Greedy
    from mtp_jax.decoding import PrefixBeam as PrefixBeam
    from mtp_jax.decoding import Threshold as Threshold
    from mtp_jax.decoding import Verify as Verify
    from mtp_jax.transcription.loading import load as load
    from mtp_jax.transcription.results import Transcript as Transcript
    from mtp_jax.transcription.transcriber import Transcriber as Transcriber

__version__ = "0.1.0"

_HOME = {
    "AudioError": "audio.reading",
    "BeamSearch": "decoding",
    "Greedy": "decoding",
    "PrefixBeam": "decoding",
    "Threshold": "decoding",
    "Verify": "decoding",
    "Transcriber": "transcription.transcriber",
    "Transcript": "transcription.results",
    "load": "transcription.loading",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
