"""How the audio of a released speech LLM is padded before it is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from mtp_jax.audio.log_mel import feature_length
from mtp_jax.config import Config
from mtp_jax.models.encoders.qwen import chunk_positions, encoded_positions
from mtp_jax.models.encoders.whisper import encoded_length
from mtp_jax.models.projectors.qformer import projected_rows
from mtp_jax.tokenizer.whisper_tokens import LanguageError

Count = TypeVar("Count", int, jax.Array)
PROMPT_TOKENS = 64  # around the audio, for which there is always a place


def has_windows(config: Config) -> bool:
    """Whether the encoder takes windows padded with silence; else clips as long as they are."""
    return config.speech_llm.encoder.kind == "whisper"


def window_frames(config: Config) -> int:
    """Log-mel frames of 10 ms in a window of the encoder, or in the longest clip."""
    return 2 * config.speech_llm.encoder.positions


def window_samples(config: Config) -> int:
    """Samples of a window, or of the longest clip."""
    return window_frames(config) * config.front_end.sample_rate // 100


def min_frames(config: Config) -> int:
    """Log-mel frames that the encoder can be run on."""
    return window_frames(config) if has_windows(config) else config.speech_llm.encoder.chunk


def hidden_length(samples: Count, config: Config) -> Count:
    """Hidden states that the encoder makes of as many samples: those that become rows."""
    encoder = config.speech_llm.encoder
    at_least = jnp.maximum if isinstance(samples, jax.Array) else max
    if not has_windows(config):
        frames = feature_length(at_least(samples, encoder.min_samples), config.front_end)
        convolved = encoder.kind == "qwen"
        return encoded_positions(frames, encoder.chunk) if convolved else frames // encoder.chunk
    if not encoder.keeps_silence:
        return encoded_length(-(-samples // (config.front_end.sample_rate // 100)))
    return at_least(-(-samples // window_samples(config)), 1) * encoder.positions


def frames_per_state(config: Config) -> float:
    """Log-mel frames that become one hidden state of the encoder."""
    encoder = config.speech_llm.encoder
    return encoder.chunk / chunk_positions(encoder.chunk) if encoder.kind == "qwen" else 2


def prompt_rows(samples: int, config: Config) -> int:
    """Rows of the prompt that an utterance of so many samples becomes, at most."""
    encoder, projector = config.speech_llm.encoder, config.speech_llm.projector
    if has_windows(config):
        states = max(1, -(-samples // window_samples(config))) * encoder.positions
    else:
        states = hidden_length(samples, config)
    if projector.kind == "qformer":
        return projected_rows(states, projector)
    return states // projector.stack


def check_prompt(start: Sequence[int], samples: int, config: Config) -> None:
    """Refuses tokens before a text that leave no place for it.

    Args:
        start: the tokens, one of which stands for the audio.
        samples: of the longest utterance.
        config: of the model.

    Raises:
        LanguageError: prompt, audio and text exceed the decoder's positions.
    """
    audio, text = prompt_rows(samples, config), config.data.max_tokens
    most = config.speech_llm.positions - audio - text
    if len(start) - 1 > most:
        raise LanguageError(
            f"the prompt comes to {len(start) - 1} tokens, and beside {audio} rows of audio and"
            f" {text} tokens of text the model has positions for {most}: shorten it"
        )
