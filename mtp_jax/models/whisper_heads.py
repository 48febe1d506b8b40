"""Heads 2..M of a Whisper: as `Heads`, behind layers of their own that attend to the audio."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from mtp_jax import config as configs
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.decoders.whisper import Carry, CrossProjection, run_layers
from mtp_jax.models.heads import Heads, Projection
from mtp_jax.models.kv_cache import CrossCache
from mtp_jax.models.layers import LayerNorm
from mtp_jax.models.mixed_precision import matmul_transposed
from mtp_jax.models.serial_block import SerialBlock, SerialStart


class WhisperHeads(Heads):
    """Logits of heads 2..M.

    Attributes:
        decoder: what their layers are like; its width is D.
    """

    decoder: configs.WhisperDecoder

    def setup(self) -> None:
        super().setup()
        if self.config.serial:
            self.block = SerialBlock(self.decoder, self.dtype)
            self.start = SerialStart(self.dtype)
        if self.config.count > 1 and (layers := self.config.layers + self.config.serial):
            self.cross = CrossProjection(self.decoder, layers, self.dtype)

    def make_norm(self) -> nn.Module:
        """Behind their layers."""
        return LayerNorm(dtype=self.dtype)

    def attend_to(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """What their layers, and behind them the block, attend to: see `WhisperDecoder`."""
        return self.cross(self.alone(audio), real)

    @nn.compact
    def run(self, carry: Carry, queries: jax.Array, *given: Any) -> Carry:  # type: ignore[override]
        """Runs the layers, and a norm, behind those of the decoder: `run_above` of it.

        What serial heads begin with comes instead of the norm, which they have behind each step.
        """
        own = dataclasses.replace(self.decoder, lora=configs.Lora())
        places = range(own.layers, own.layers + self.config.layers)
        carry = (self.alone(carry[0]), *carry[1:])
        if places:
            laid_out = self.has_variable("params", layer_name(0))
            carry, _ = run_layers(own, self.dtype, laid_out, places, carry, *given)
        x, keys, values = carry
        x = self.start(x, self.alone(queries)) if self.config.serial else self.norm(x)
        return x, keys, values

    def step(self, state: jax.Array, token: jax.Array, cross: CrossCache) -> jax.Array:
        """The state of the next serial head: `SerialBlock`."""
        own = cross.keys[-1], cross.values[-1]
        return self.block(state, self.alone(token), own, cross.real)

    def read(self, state: jax.Array, lm_head: jax.Array) -> jax.Array:
        """float32[..., V or N] logits of a serial head at its states [..., D]."""
        return matmul_transposed(self.norm(state), self.unembedding(self.alone(lm_head)))

    def serial_projections(
        self,
        first: jax.Array,
        state: jax.Array,
        tokens: jax.Array,
        cross: CrossCache,
        lm_head: jax.Array,
    ) -> list[Projection]:
        """As `projections`, of a text that is known.

        Args:
            first: [B, L, D], what head 1 reads; `state`: [B, L, D], what serial heads begin with.
            tokens: [M - 1, B, L, D], embeddings of the tokens of heads 1..M - 1.
            cross: of the audio; `lm_head`: [V, D].
        """

        def step(
            heads: WhisperHeads, state: jax.Array, token: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            state = heads.step(state, token, cross)
            return state, heads.norm(state)

        steps = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, states = steps(self, state, tokens)
        return [
            Projection(slice(0, 1), first[None], lm_head),
            Projection(
                slice(1, None),
                states,
                self.unembedding(self.alone(lm_head)),
                self.tokens if self.config.vocabulary else None,
            ),
        ]
