"""Heads 2..M of a speech LLM: as `Heads`, or serial ones, which look at the rows of the audio.

The decoder has the audio in its prompt, and keys and values of that are of every layer. The block
of serial heads has some of its own, made once of the rows themselves: so it, too, keeps nothing
between decoder calls (`mtp_jax.models.serial_block`, which is Whisper's).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Decoder, Lora
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.attention import attend_across
from mtp_jax.models.decoders.llama import feedforward
from mtp_jax.models.heads import Heads
from mtp_jax.models.kv_cache import CrossCache
from mtp_jax.models.layers import Linear, RMSNorm, zero_padding

_WIDTH = ("batch", None, None)  # axes of what a step hands on


class AudioProjection(nn.Module):
    """Keys and values that the block makes of the audio, once for each utterance.

    Attributes:
        config: of the decoder, whose heads of keys these are like.
        dtype: of the products.
    """

    config: Decoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """Of rows [B, T, D] of the prompt, bool[B, T] of which are real."""
        c = self.config
        x = RMSNorm(c.norm_epsilon, self.dtype, name="norm")(zero_padding(audio, real))

        def project(name: str, order: tuple[int, int]) -> jax.Array:
            axes, features = ("embed", "kv_heads"), c.kv_heads * c.head_size
            y = Linear(features, axes, dtype=self.dtype, name=name)(x)
            y = y.reshape(*y.shape[:2], c.kv_heads, c.head_size)
            return constrain(jnp.transpose(y, (0, 2, *order)), "batch", "kv_heads", None, None)

        return CrossCache((project("keys", (3, 1)),), (project("values", (1, 3)),), real)


class LlamaSerialBlock(nn.Module):
    """One step ahead in the text, by the token that was drafted last.

    Attributes:
        config: of the decoder, as one of whose layers it is but for the attention.
        dtype: of activations.
    """

    config: Decoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        state: jax.Array,
        token: jax.Array,
        cross: tuple[jax.Array, jax.Array],
        audio_real: jax.Array,
    ) -> jax.Array:
        """The next state.

        Args:
            state: [B K, S, D], before the norm of whoever reads it.
            token: [B K, S, D], embeddings of the tokens that were read off it.
            cross: keys and values of the audio of B utterances; `audio_real`: bool[B, T].
        """
        c = self.config

        def norm(x: jax.Array, name: str) -> jax.Array:
            normed: jax.Array = RMSNorm(c.norm_epsilon, self.dtype, name=name)(x)
            return normed

        def linear(
            x: jax.Array, features: int, axes: tuple[str | None, str], name: str
        ) -> jax.Array:
            y: jax.Array = Linear(features, axes, dtype=self.dtype, name=name)(x)
            return y

        both = jnp.concatenate([norm(state, "state_norm"), norm(token, "token_norm")], axis=-1)
        x = constrain(state + linear(both, c.width, (None, "embed"), "join"), *_WIDTH)
        shape = *x.shape[:2], c.kv_heads, c.head_size
        size = c.kv_heads * c.head_size
        q = linear(norm(x, "cross_norm"), size, ("embed", "kv_heads"), "cross_query")
        q = constrain(q.reshape(shape), "batch", None, "kv_heads", None)
        keys, values = (y.astype(self.dtype) for y in cross)
        y = attend_across(q, keys, values, audio_real).reshape(*x.shape[:2], size)
        x = constrain(x + linear(y, c.width, ("kv_heads", "embed"), "cross_output"), *_WIDTH)
        return feedforward(c, self.dtype, Lora(), self.has_variable("params", "gate_up"), x)


class SpeechLlmHeads(Heads):
    """Logits of heads 2..M."""

    def setup(self) -> None:
        super().setup()
        if self.config.serial:
            self.block = LlamaSerialBlock(self.decoder, self.dtype)
            self.cross = AudioProjection(self.decoder, self.dtype)

    def attend_to(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """What the block of serial heads attends to, of rows [B, T, D], bool[B, T] real."""
        return self.cross(self.alone(audio), real)
