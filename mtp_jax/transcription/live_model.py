"""What a model gives a live session: its options, its segmenter, and the chunks to compile for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtp_jax.audio.live_segmentation import LiveSegmenter
from mtp_jax.audio.segmentation import PAUSE, Chunk
from mtp_jax.decoding import registry
from mtp_jax.transcription.live import LiveSession
from mtp_jax.transcription.transcriber import PREVIOUS_TOKENS, Transcriber

LONGEST = 12.0  # s of a stretch: each hypothesis encodes all of it


def live_fields(
    model: Transcriber,
    strategy: str = "auto",
    language: str = "",
    task: str = "transcribe",
    prompt: str = "",
    condition_on_previous: bool = True,
) -> dict[str, Any]:
    """What a session of a model is made of, beside what it tells its events.

    Args:
        model: what decodes it.
        strategy: name of one.
        language, task, prompt: as `Transcriber.transcribe` takes them.
        condition_on_previous: whether a Whisper is given the text of the stretches before.

    Raises:
        LanguageError: the model has no such language or task, or takes no prompt.
    """
    alone = model.start_tokens(language, task, prompt)
    conditions = condition_on_previous and model.runner.model.vocabulary.whisper is not None

    def start(previous: str) -> tuple[int, ...]:
        if not conditions or not previous:
            return alone
        return model.start_tokens(language, task, prompt, previous)

    return {
        "start": start,
        "strategy": strategy,
        "drafts": registry.get(strategy).drafts_text,
        "calibrated": model.calibration is not None,
        "sample_rate": model.sample_rate,
    }


def live_segmenter(model: Transcriber, pause: float = PAUSE) -> LiveSegmenter:
    """A segmenter for such a session; `pause`: s that end a stretch."""
    return LiveSegmenter(model.sample_rate, min(LONGEST, model.longest), pause=pause)


def live_chunks(model: Transcriber, session: LiveSession) -> Iterator[Chunk]:
    """A chunk of each kind that a session has decoded: one for each program."""
    most = min(LONGEST, model.longest) * model.sample_rate
    count = sum(length < most for length in model.lengths) + 1
    previous = PREVIOUS_TOKENS * "so it goes "  # more than enough
    for start in dict.fromkeys((session.start(""), session.start(previous))):
        for samples in model.lengths[:count]:
            audio = np.zeros(samples, np.int16)
            yield session.drafted(Chunk(0.0, audio, 0.0, start_tokens=start))
