"""Speech to transcribe: sentences of the embedded corpus."""

from __future__ import annotations

import io
import itertools

import numpy as np
import soundfile

from mtp_jax.data import corpus, grammar

RATE = 16_000


def sentences(count: int) -> list[np.ndarray]:
    """int16[T] of each."""
    texts = itertools.islice(grammar.sentences("dev", 0), count)
    spoken = [corpus.utterance(text, 0, "dev", i) for i, text in enumerate(texts)]
    return [soundfile.read(io.BytesIO(item.flac), dtype="int16")[0] for item in spoken]


def flac(samples: np.ndarray, kind: str = "FLAC") -> bytes:
    """A file of them."""
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()
