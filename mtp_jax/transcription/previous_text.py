"""Which text may condition the text that follows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtp_jax.inference.fallback import MAX_COMPRESSION, compression
from mtp_jax.transcription.assembly import UNLIKELY
from mtp_jax.transcription.repetition import find_repetition
from mtp_jax.transcription.results import Segment


def is_sane(segments: Sequence[Segment]) -> bool:
    """Whether the next text may be conditioned on a text.

    A text that has no end, repeats itself or is unlikely would go on in the next
    (the rules of Whisper's transcribe.py, and `transcription.repetition`).
    """
    tokens = [token for segment in segments for token in segment.tokens if token.word >= 0]
    if any(segment.looped or not segment.complete for segment in segments):
        return False
    text = " ".join(segment.text for segment in segments)
    if compression(text) > MAX_COMPRESSION or find_repetition([token.id for token in tokens]):
        return False
    logs = [math.log(max(token.confidence, 1e-30)) for token in tokens]
    return not logs or float(np.mean(logs)) > UNLIKELY
