"""A tiny speech LLM with drawn parameters, made of no files."""

from __future__ import annotations

from typing import Any

from mtp_jax.config import (
    AudioEncoder,
    Config,
    Data,
    Decoder,
    Evaluation,
    FrontEnd,
    Heads,
    Projector,
    SpeechLlm,
)
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_llm import SpeechLlm as SpeechLlmModel
from mtp_jax.tokenizer.speech_prompts import SpeechPrompt

WINDOW = 0.4  # seconds


def tiny_speech_llm(heads: Heads, **groups: Any) -> SpeechLlmModel:
    """A model of 16 tokens and windows of `WINDOW`; `groups` of its config."""
    config = Config(
        front_end=FrontEnd("whisper", mel_bins=8),
        data=Data(bucket_seconds=(WINDOW,), max_tokens=20),
        decoder=Decoder(
            width=8,
            layers=2,
            query_heads=4,
            kv_heads=2,
            head_size=4,
            feedforward=12,
            tied=False,
        ),
        speech_llm=SpeechLlm(
            "voxtral",
            AudioEncoder(
                "whisper", width=8, layers=1, heads=2, feedforward=32, positions=round(50 * WINDOW)
            ),
            Projector(stack=4, width=8),
        ),
        heads=heads,
        evaluation=Evaluation(bucket_seconds=(WINDOW,)),
        **groups,
    )
    prompt = SpeechPrompt("tiny", audio=3, begin=(1,), before_audio=(), behind_audio=(0,), end=())
    return SpeechLlmModel(config, Vocabulary(16, bos=1, eos=2, speech=prompt))
