"""How the audio of a released speech LLM is padded before it is encoded."""

from __future__ import annotations

from collections.abc import Sequence

from mtp_jax.audio.log_mel import feature_length
from mtp_jax.config import Config
from mtp_jax.models.encoders.qwen import encoded_positions
from mtp_jax.models.projectors.qformer import projected_rows
from mtp_jax.tokenizer.whisper_tokens import LanguageError


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


def prompt_rows(samples: int, config: Config) -> int:
    """Rows of the prompt that an utterance of so many samples becomes, at most."""
    encoder, projector = config.speech_llm.encoder, config.speech_llm.projector
    if has_windows(config):
        states = max(1, -(-samples // window_samples(config))) * encoder.positions
    else:
        frames = feature_length(max(samples, encoder.min_samples), config.front_end)
        convolved = encoder.kind == "qwen"
        states = encoded_positions(frames, encoder.chunk) if convolved else frames // encoder.chunk
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
