"""The block of serial heads: a step ahead in the text, by the token that was drafted last.

Its state after m - 1 steps is what head m reads. As the multi-token modules of DeepSeek-V3
(arXiv 2412.19437) it takes the state before and the embedding of a token, and as EAGLE (arXiv
2401.15077) it begins from what the decoder hands to its LM head; all heads have one block in
common. It does not look at the text, which is in the state, but at the audio: so it keeps nothing
between decoder calls, and a draft that is rejected leaves nothing to take back.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Lora, WhisperDecoder
from mtp_jax.models.decoders.whisper import Cross, attend_and_transform
from mtp_jax.models.layers import LayerNorm, Linear

_LAYERS = 4  # of the decoder's upper half, at most, that tell where it looks


class SerialStart(nn.Module):
    """What the first step takes: the state, and where in the audio the decoder looks.

    The last layer's output is about the next token, and no longer tells what was heard where; what
    upper layers ask of the audio does. (EAGLE-3, arXiv 2503.01840, takes states of several layers.)

    Attributes:
        dtype: of activations.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state: jax.Array, queries: jax.Array) -> jax.Array:
        """Of a state [B, S, D], and the queries [layers, B, S, N, H] that were put to the audio."""
        upper = min(_LAYERS, (len(queries) + 1) // 2)
        asked = jnp.moveaxis(queries[-upper:], 0, 2).reshape(*state.shape[:2], -1)
        asked = LayerNorm(dtype=self.dtype, name="norm")(asked)
        return state + Linear(state.shape[-1], (None, "embed"), dtype=self.dtype, name="join")(
            asked
        )


class SerialBlock(nn.Module):
    """One step.

    Attributes:
        config: of the decoder, as one of whose layers it is but for the attention to text.
        dtype: of activations.
    """

    config: WhisperDecoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, state: jax.Array, token: jax.Array, cross: Cross, audio_real: jax.Array
    ) -> jax.Array:
        """The next state.

        Args:
            state: [B K, S, D], before the norm of whoever reads it.
            token: [B K, S, D], embeddings of the tokens that were read off it.
            cross: keys and values of the audio of B utterances; `audio_real`: bool[B, T].
        """
        known = (("state_norm", state), ("token_norm", token))
        normed = [LayerNorm(dtype=self.dtype, name=name)(x) for name, x in known]
        both = jnp.concatenate(normed, axis=-1)
        x = state + Linear(self.config.width, (None, "embed"), dtype=self.dtype, name="join")(both)
        own = dataclasses.replace(self.config, lora=Lora())
        return attend_and_transform(own, self.dtype, x, cross, audio_real)[0]
