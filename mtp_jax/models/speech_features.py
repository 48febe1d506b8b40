"""What is encoded of a batch: log-mel features, or what Whisper makes of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.audio.log_mel import feature_length, log_mel
from mtp_jax.data import Batch
from mtp_jax.models.encoders.whisper import encoded_length
from mtp_jax.models.recogniser import Recogniser, call


def speech_features(model: Recogniser, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Features of a batch of waveforms, or of one that holds cached features already.

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
    window = 2 * c.whisper.positions * c.front_end.sample_rate // 100
    if c.whisper_decoder.present:  # the silence is heard too
        silence = round(c.whisper.silence * c.front_end.sample_rate)
        samples = jnp.minimum(samples + silence, window)
        if not batch.has_features:
            longest = min(audio.shape[1] + silence, window)
            audio = jnp.pad(audio, ((0, 0), (0, max(0, longest - audio.shape[1]))))
    length = encoded_length(feature_length(samples, c.front_end))
    if batch.has_features:
        return audio, length
    if c.whisper_decoder.present or not c.whisper.padded:
        features: jax.Array = call(
            Recogniser.encode_speech, model, params, *log_mel(audio, samples, c.front_end)
        )
        return features, length
    frames = encoded_length(feature_length(audio.shape[1], c.front_end))
    audio = jnp.pad(audio, ((0, 0), (0, window - audio.shape[1])))
    mel, mel_length = log_mel(audio, jnp.full_like(samples, window), c.front_end)
    features = call(Recogniser.encode_speech, model, params, mel, mel_length)
    return features[:, :frames], length
