"""Released speech LLMs: audio encoder, projector, decoder-only LLM, multi-token heads.

A row is laid out as ``[tokens] audio [tokens] text``: the audio's rows take ordinary positions of
the prompt. What the tokens are stands in `mtp_jax.tokenizer.speech_prompts`.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import AudioEncoder, Projector, Whisper
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.encoders.conformer import Conformer, frames_mask
from mtp_jax.models.encoders.granite import GraniteEncoder
from mtp_jax.models.encoders.qwen import QwenEncoder
from mtp_jax.models.encoders.whisper import WhisperEncoder, encoded_length
from mtp_jax.models.encoders.windows import encode_windows
from mtp_jax.models.layers import Linear
from mtp_jax.models.projectors.mlp import MlpProjector
from mtp_jax.models.projectors.qformer import QFormerProjector
from mtp_jax.models.recogniser import Encoded
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.models.speech_llm_heads import SpeechLlmHeads
from mtp_jax.models.speech_windows import has_windows, window_frames
from mtp_jax.tokenizer.speech_prompts import AUDIO, SpeechPrompt

_NEVER = float(np.finfo(np.float32).min)  # logit of a token that may not be


def make_encoder(config: AudioEncoder, dtype: jnp.dtype) -> nn.Module:
    """The encoder of a kind."""
    if config.kind == "qwen":
        return QwenEncoder(config, dtype)
    if config.kind == "granite":
        return GraniteEncoder(config, dtype)
    sizes = ("width", "layers", "heads", "positions")
    whisper = Whisper(**{name: getattr(config, name) for name in sizes})
    return WhisperEncoder(whisper, dtype, config.rotary)


def make_projector(config: Projector, features: int, dtype: jnp.dtype) -> nn.Module:
    """The projector of a kind, onto rows of so many `features`."""
    kind = QFormerProjector if config.kind == "qformer" else MlpProjector
    return kind(config, features, dtype)


class SpeechLlm(SpeechLlama):
    """A released speech LLM with M prediction heads, of which the first is its own.

    It differs from `SpeechLlama` in encoder, projector and prompt.
    """

    def setup(self) -> None:
        c, size = self.config, self.vocabulary.size
        dtype = jnp.dtype(c.train.dtype)
        self.encoder = make_encoder(c.speech_llm.encoder, dtype)
        self.projector = make_projector(c.speech_llm.projector, c.decoder.width, dtype)
        if self.vocabulary.has_ctc:
            self.ctc_encoder = Conformer(c.encoder, dtype)
            self.ctc = Linear(self.vocabulary.labels + 1, ("embed", None), True, jnp.float32)
        self.decoder = Llama(c.decoder, size, dtype, c.heads.layers)
        self.heads = SpeechLlmHeads(c.heads, c.decoder, size, dtype)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """As of every `Recogniser`: nothing of CTC has a part in it either."""
        return ("heads/", "ctc_encoder/", "ctc/")

    @property
    def speech(self) -> SpeechPrompt:
        """The prompt."""
        assert self.vocabulary.speech is not None
        return self.vocabulary.speech

    def hidden_states(self, features: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the encoder makes of log-mel [B, T, Z], int32[B] frames: [B, T', D] and lengths."""
        if not has_windows(self.config):
            return self.encoder(features, length)
        frames = window_frames(self.config)
        x = encode_windows(self.encoder, features, frames)
        if not self.config.speech_llm.encoder.keeps_silence:
            return x, encoded_length(length)
        return x, jnp.maximum(-(-length // frames), 1) * (frames // 2)

    def encoder_ctc_logits(self, hidden: jax.Array) -> jax.Array:
        """float32[B, T', labels] of Granite's CTC head at its encoder's `hidden` states [B, T', D].

        The first is the blank (`mtp_jax.tokenizer.granite_ctc`).
        """
        return cast(GraniteEncoder, self.encoder).ctc_logits(hidden)

    def encode_speech(self, features: jax.Array, length: jax.Array) -> jax.Array:
        """As of every `Recogniser`: `hidden_states` without their lengths."""
        return self.hidden_states(features, length)[0]

    def encode(self, features: jax.Array, length: jax.Array, deterministic: bool = True) -> Encoded:
        """Rows of the prompt, and CTC's logits, of hidden states [B, T', D], int32[B] `length`."""
        audio, rows = self.projector(features, length)
        start = jnp.array(self.speech.start_tokens(), jnp.int32)
        drafting = None
        if self.config.heads.serial:
            drafting = self.heads.attend_to(audio, frames_mask(rows, audio.shape[1]))
        encoded = Encoded(
            audio=audio,
            length=rows,
            ctc_logits=None,
            ctc_length=rows,
            start=jnp.broadcast_to(start, (len(audio), len(start))),
            drafting=drafting,
        )
        if self.vocabulary.has_ctc:
            return self.with_ctc(encoded, self.ctc_encoder, features, length, not deterministic)
        if self.vocabulary.merges is None:
            return encoded
        logits = jnp.roll(self.encoder_ctc_logits(features), -1, axis=-1)  # the blank goes last
        return dataclasses.replace(encoded, ctc_hypothesis=self.ctc_hypothesis(logits, length))

    def prompt(self, encoded: Encoded) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Everything before the text, as of every `Recogniser`; each row may have its own tokens.

        Tokens before the audio stand in front of it and those behind it at the end, so that every
        row has the audio in the same place, and padding elsewhere.
        """
        start = cast(jax.Array, encoded.start)
        places = jnp.arange(start.shape[1])
        at = jnp.argmax(start == AUDIO, axis=1)[:, None]
        tokens = self.decoder.embed(jnp.maximum(start, 0))
        audio = encoded.audio.astype(tokens.dtype)
        x = jnp.concatenate([tokens, audio, tokens], axis=1)
        real = jnp.concatenate(
            [
                (start >= 0) & (places < at),
                frames_mask(encoded.length, audio.shape[1]),
                (start >= 0) & (places > at),
            ],
            axis=1,
        )
        return x, real, jnp.zeros(real.shape, jnp.int32)

    def next_token(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits at hidden states [..., E].

        Of several tokens that end a text EOS has the greatest logit and the others the lowest: the
        text is the same, and ends with one token.
        """
        logits = self.decoder.unembed(self.of_head_1(hidden))
        if not self.vocabulary.ends:
            return logits
        eos, ends = self.vocabulary.eos, np.array(self.vocabulary.ends)
        end = jnp.max(logits[..., np.append(ends, eos)], axis=-1)
        return logits.at[..., ends].set(_NEVER).at[..., eos].set(end)
