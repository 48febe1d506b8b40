"""Heads 2..M of a Whisper: as `Heads`, behind layers of their own that attend to the audio."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from mtp_jax import config as configs
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.decoders.whisper import Carry, CrossProjection, run_layers
from mtp_jax.models.heads import Heads
from mtp_jax.models.kv_cache import CrossCache
from mtp_jax.models.layers import LayerNorm
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
        x = self.start(x, self.alone(queries)) if self.config.serial else self.normed(x)
        return x, keys, values

    def normed(self, state: jax.Array) -> jax.Array:
        """What is un-embedded of their states [..., D]."""
        read: jax.Array = self.norm(state)
        return read
