"""What the Conformer hears of a batch: log-mel features, or what Whisper makes of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.audio.log_mel import feature_length, log_mel
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.models.encoders.whisper import encoded_length
from mtp_jax.models.speech_llama import SpeechLlama, call


def speech_features(model: SpeechLlama, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Features of a batch of waveforms, or those that a `FeatureBatch` holds.

    Args:
        model, params: of which only the Whisper encoder, if there is one, has a part in this.
        batch: its rows.

    Returns:
        [B, T, Z] features and their int32[B] lengths.
    """
    c = model.config
    audio, samples = jnp.asarray(batch.audio), jnp.asarray(batch.audio_length)
    if not c.whisper.present:
        return log_mel(audio, samples, c.front_end)
    length = encoded_length(feature_length(samples, c.front_end))
    if isinstance(batch, FeatureBatch):
        return audio, length
    if not c.whisper.padded:
        features: jax.Array = call(
            SpeechLlama.encode_speech, model, params, *log_mel(audio, samples, c.front_end)
        )
        return features, length
    frames = encoded_length(feature_length(audio.shape[1], c.front_end))
    window = 2 * c.whisper.positions * c.front_end.sample_rate // 100
    audio = jnp.pad(audio, ((0, 0), (0, window - audio.shape[1])))
    mel, mel_length = log_mel(audio, jnp.full_like(samples, window), c.front_end)
    features = call(SpeechLlama.encode_speech, model, params, mel, mel_length)
    return features[:, :frames], length
