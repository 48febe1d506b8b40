"""What is encoded of a batch: log-mel features, or what a pretrained encoder makes of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.audio.log_mel import feature_length, log_mel
from mtp_jax.config import Config
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.models.encoders.whisper import encoded_length
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.models.speech_llm import SpeechLlm
from mtp_jax.models.speech_windows import has_windows, hidden_length, window_samples


def speech_features(model: Recogniser, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Features of a batch of waveforms, or those that a `FeatureBatch` holds.

    Args:
        model, params: of which only a Whisper's or a speech LLM's encoder has a part in this.
        batch: its rows.

    Returns:
        [B, T, Z] features and their int32[B] lengths.
    """
    c = model.config
    audio, samples = jnp.asarray(batch.audio), jnp.asarray(batch.audio_length)
    if c.speech_llm.present:
        if isinstance(batch, FeatureBatch):
            return audio, hidden_length(samples, c)
        mel = speech_llm_mel(audio, samples, c)
        return call(SpeechLlm.hidden_states, model, params, *mel)
    if not c.whisper.present:
        return log_mel(audio, samples, c.front_end)
    whole, most = c.whisper_decoder.present, window(c)
    samples = jnp.minimum(samples + _silence(c), most)
    length = encoded_length(feature_length(samples, c.front_end))
    if isinstance(batch, FeatureBatch):
        return audio, length

    def padded(samples: int) -> jax.Array:
        return jnp.pad(audio, ((0, 0), (0, max(0, samples - audio.shape[1]))))

    if whole or not c.whisper.padded:
        mel = log_mel(padded(min(audio.shape[1] + _silence(c), most)), samples, c.front_end)
        return call(Recogniser.encode_speech, model, params, *mel), length
    frames = encoded_length(feature_length(audio.shape[1], c.front_end))
    mel = log_mel(padded(most), jnp.full_like(samples, most), c.front_end)
    return call(Recogniser.encode_speech, model, params, *mel)[:, :frames], length


def speech_llm_mel(
    audio: jax.Array, samples: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array]:
    """Log-mel features [B, T, Z] and int32[B] frames, as the encoder of a speech LLM takes them."""
    audio = jnp.where(jnp.arange(audio.shape[1]) < samples[:, None], audio, 0)
    return (_in_windows if has_windows(config) else _alone)(audio, samples, config)


def _in_windows(
    audio: jax.Array, samples: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array]:
    """Features of whole windows, and frames that audio is in.

    The audio is padded before its features are made: silence is no zero among these.
    """
    window = window_samples(config)
    padded = window * jnp.maximum(-(-samples // window), 1)
    audio = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % window or window * (not audio.shape[1]))))
    frames = -(-samples // (config.front_end.sample_rate // 100))
    if not config.speech_llm.encoder.own_floor:
        return log_mel(audio, padded, config.front_end)[0], frames
    windows = audio.reshape(-1, window)
    each = jnp.full(len(windows), window, jnp.int32)
    features, _ = log_mel(windows, each, config.front_end)
    return features.reshape(len(audio), -1, features.shape[-1]), frames


def _alone(audio: jax.Array, samples: jax.Array, config: Config) -> tuple[jax.Array, jax.Array]:
    """Features of clips as long as they are, each with its own floor, and how many are real."""
    least = config.speech_llm.encoder.min_samples
    audio = jnp.pad(audio, ((0, 0), (0, max(0, least - audio.shape[1]))))
    return log_mel(audio, jnp.maximum(samples, least), config.front_end)


def encoded_frames(samples: int, config: Config) -> int:
    """Frames that a pretrained encoder makes of an utterance, of silence behind it too."""
    if config.speech_llm.present:
        return hidden_length(samples, config)
    encoded = min(samples + _silence(config), window(config))
    return int(encoded_length(feature_length(encoded, config.front_end)))


def encoded_width(config: Config) -> int:
    """D of what a pretrained encoder makes."""
    return config.speech_llm.encoder.width if config.speech_llm.present else config.whisper.width


def window(config: Config) -> int:
    """Samples in Whisper's window."""
    return 2 * config.whisper.positions * config.front_end.sample_rate // 100


def _silence(config: Config) -> int:
    """Samples of silence that are encoded behind an utterance."""
    whole = config.whisper_decoder.present
    return round(config.whisper.silence * config.front_end.sample_rate) if whole else 0
