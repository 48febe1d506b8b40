"""What is encoded of a batch: log-mel features, or what Whisper makes of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.audio.log_mel import feature_length, log_mel
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.models.encoders.whisper import encoded_length
from mtp_jax.models.recogniser import Recogniser, call


def speech_features(model: Recogniser, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
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
    rate, whole = c.front_end.sample_rate, c.whisper_decoder.present
    window = 2 * c.whisper.positions * rate // 100
    silence = round(c.whisper.silence * rate) if whole else 0  # that counts as the row's own
    samples = jnp.minimum(samples + silence, window)
    length = encoded_length(feature_length(samples, c.front_end))
    if isinstance(batch, FeatureBatch):
        return audio, length

    def padded(samples: int) -> jax.Array:
        return jnp.pad(audio, ((0, 0), (0, max(0, samples - audio.shape[1]))))

    if whole or not c.whisper.padded:
        mel = log_mel(padded(min(audio.shape[1] + silence, window)), samples, c.front_end)
        return call(Recogniser.encode_speech, model, params, *mel), length
    frames = encoded_length(feature_length(audio.shape[1], c.front_end))
    mel = log_mel(padded(window), jnp.full_like(samples, window), c.front_end)
    return call(Recogniser.encode_speech, model, params, *mel)[:, :frames], length
