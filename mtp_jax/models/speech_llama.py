"""The whole recogniser: speech encoders, adaptor, LLaMA decoder, multi-token heads.

A row is laid out as ``[prompt_before] audio [prompt_after] BOS text``. The audio embeddings are a
soft prompt; head 1 at BOS predicts the first token of the text.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.models.bpe import retokenize
from mtp_jax.models.ctc import best_labels
from mtp_jax.models.ctc_compression import label_posteriors, label_weights
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.encoders.conformer import Conformer, frames_mask
from mtp_jax.models.encoders.whisper import WhisperEncoder
from mtp_jax.models.heads import Heads
from mtp_jax.models.kv_cache import KVCache
from mtp_jax.models.layers import Linear, parameter, zero_padding
from mtp_jax.models.recogniser import Encoded, Recogniser


class SpeechLlama(Recogniser):
    """Speech-LLaMA with M prediction heads (arXiv 2409.08148)."""

    def setup(self) -> None:
        c, size = self.config, self.vocabulary.size
        dtype = jnp.dtype(c.train.dtype)
        if c.whisper.present:
            self.whisper = WhisperEncoder(c.whisper, dtype)
        self.encoder: nn.Module = Conformer(c.encoder, dtype)
        labels = self.vocabulary.labels
        self.ctc = Linear((labels or size) + 1, ("embed", None), True, jnp.float32)
        if labels and c.adaptor.ctc_compression and self.vocabulary.merges is None:
            init, axes = nn.initializers.normal(c.decoder.width**-0.5), (None, "embed")
            shape = (labels, c.decoder.width)
            self.label_embedding = parameter(self, "label_embedding", init, axes, shape)
        self.adaptor = Linear(c.decoder.width, ("embed", None), True, dtype)
        self.decoder = Llama(c.decoder, size, dtype, c.heads.layers)
        self.heads = Heads(c.heads, c.decoder, size, dtype)

    def encode(self, features: jax.Array, length: jax.Array, deterministic: bool = True) -> Encoded:
        """Encodes `features` [B, T, Z], log-mel or from `encode_speech`, of int32[B] `length`."""
        x, frames = self.encoder(features, length, deterministic)
        logits = self.ctc(x)
        reading = None if self.vocabulary.labels else best_labels(logits, frames)
        if not self.config.adaptor.ctc_compression:
            return Encoded(self.adaptor(x), frames, logits, frames, reading)
        capacity = x.shape[1]
        if not deterministic:
            capacity = math.ceil(capacity * self.config.adaptor.training_capacity)
        if self.vocabulary.merges is None:
            share, length = label_weights(logits, frames, capacity)
            # In the decoder's own words: it has only to learn to copy.
            read = self._in_words(label_posteriors(logits, frames, share).astype(x.dtype))
        else:
            reading, read, share, length = self._in_tokens(logits, frames, capacity)
        x = zero_padding(x, frames_mask(frames, x.shape[1]))
        audio = self.adaptor(share.astype(x.dtype) @ x) + read.astype(x.dtype)
        return Encoded(audio, length, logits, frames, reading)

    def _in_words(self, odds: jax.Array) -> jax.Array:
        """Embeddings [B, R, D] of what CTC reads with the odds [B, R, labels]."""
        if self.vocabulary.labels:
            return odds @ self.label_embedding.astype(odds.dtype)
        return self.decoder.expected(odds)

    def _in_tokens(
        self, logits: jax.Array, frames: jax.Array, capacity: int
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array, jax.Array, jax.Array]:
        """What CTC reads, in the decoder's tokens, of which there may be `capacity`.

        Returns:
            It, the embeddings [B, capacity, D], the weights [B, capacity, T] of the frames in each
            (those of the labels that a token is made of, by their bytes in it), and their number.
            Where CTC has no label, one embedding holds all frames.
        """
        assert self.vocabulary.merges is not None
        by_label, at_least_one = label_weights(logits, frames)
        labels, count = best_labels(logits, frames)
        bytes_a_token = 4
        tokens, count, parts = retokenize(
            self.vocabulary.merges, labels, count, bytes_a_token * capacity, capacity
        )
        share = parts @ (by_label > 0).astype(jnp.float32)
        share /= jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1)
        some = count > 0
        return (
            (tokens, count),
            zero_padding(self.decoder.embed(tokens), frames_mask(count, capacity)),
            jnp.where(some[:, None, None], share, by_label[:, :capacity]),
            jnp.where(some, count, at_least_one),
        )

    def __call__(
        self,
        features: jax.Array,
        length: jax.Array,
        tokens: jax.Array,
        token_length: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Encoded]:
        """The teacher-forced pass, as of every `Recogniser`."""
        encoded = self.encode(features, length, deterministic)
        prefix, prefix_real, position_offset = self.prompt(encoded)
        text = self.decoder.embed(tokens[:, :-1])
        text_real = jnp.arange(1, tokens.shape[1]) < token_length[:, None]
        hidden, _ = self._decode(
            jnp.concatenate([prefix, text], axis=1),
            jnp.concatenate([prefix_real, text_real], axis=1),
            jnp.concatenate(
                [position_offset, jnp.broadcast_to(position_offset[:, -1:], text_real.shape)],
                axis=1,
            ),
            deterministic=deterministic,
        )
        if self.is_initializing():
            self.next_token(hidden[:, -1])
            self.draft_logits(hidden[:, -1])
        return hidden[:, prefix.shape[1] - 1 :], encoded

    def prompt(self, encoded: Encoded) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Everything before the text, BOS last.

        Returns:
            Embeddings [B, P, D], bool[B, P] which are real, and int32[B, P], by how much their
            rotary positions lag.
        """
        rows, frames, _ = encoded.audio.shape
        before = self.vocabulary.prompt_before
        after = (*self.vocabulary.prompt_after, self.vocabulary.bos)

        def constant(tokens: tuple[int, ...]) -> jax.Array:
            x = self.decoder.embed(jnp.array(tokens, jnp.int32))
            return jnp.broadcast_to(x, (rows, *x.shape))

        real = [
            jnp.ones((rows, len(before)), bool),
            frames_mask(encoded.length, frames),
            jnp.ones((rows, len(after)), bool),
        ]
        x = [constant(before), encoded.audio, constant(after)]
        back = self._offset(encoded)
        behind = jnp.arange(len(before) + frames + len(after)) >= len(before) + frames
        return (
            jnp.concatenate(x, axis=1),
            jnp.concatenate(real, axis=1),
            jnp.where(behind, back[:, None], 0),
        )

    def cache(self, encoded: Encoded, slots: int) -> KVCache:
        """An empty cache; rotary positions of the text lag as `prompt` says."""
        cache = self.decoder.empty_cache(encoded.audio.shape[0], slots)
        return dataclasses.replace(cache, position_offset=self._offset(encoded))

    def _offset(self, encoded: Encoded) -> jax.Array:
        """int32[B], by how much the rotary positions behind the audio lag."""
        aligned = self.config.adaptor.aligned_positions
        return encoded.length if aligned else jnp.zeros_like(encoded.length)

    def extend_prompt(
        self, x: jax.Array, real: jax.Array, position_offset: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds a part [B, S, D] of the prompt; hidden states [B, S, E]."""
        hidden, filled = self._decode(x, real, position_offset, cache)
        return hidden, cast(KVCache, filled)

    def extend(
        self, tokens: jax.Array, count: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds the first int32[B] `count` of int32[B, S] `tokens`; hidden states [B, S, E]."""
        real = jnp.arange(tokens.shape[1]) < count[:, None]
        hidden, longer = self._decode(
            self.decoder.embed(tokens), real, cache.position_offset[:, None], cache
        )
        return hidden, cast(KVCache, longer)

    @property
    def hidden_width(self) -> int:
        """E of the hidden states: D, or twice as much where heads 2..M have layers of their own."""
        return self.config.decoder.width * (2 if self.config.heads.layers else 1)

    def _decode(
        self,
        x: jax.Array,
        real: jax.Array,
        position_offset: jax.Array,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states [B, S, E] of `x` [B, S, D], and the longer cache."""
        run_above = self.heads.run if self.config.heads.layers else None
        return self.decoder(x, real, cache, deterministic, position_offset, run_above)

    def of_head_1(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what head 1 reads of hidden states [..., E]."""
        return hidden[..., : self.config.decoder.width]

    def of_later_heads(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what heads 2..M read of hidden states [..., E]."""
        own = hidden[..., -self.config.decoder.width :]
        return own if self.config.heads.layers else self.heads.alone(own)

    def next_token(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits of head 1 at hidden states [..., E]."""
        return self.decoder.unembed(self.of_head_1(hidden))

    def all_logits(self, hidden: jax.Array) -> jax.Array:
        """float32[..., M, V] logits of every head at hidden states [..., E]."""
        first = self.next_token(hidden)[..., None, :]
        return jnp.concatenate([first, self.draft_logits(hidden)], axis=-2)
