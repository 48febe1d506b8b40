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


class WhisperHeads(Heads):
    """Logits of heads 2..M.

    Attributes:
        decoder: what their layers are like; its width is D.
    """

    decoder: configs.WhisperDecoder

    def setup(self) -> None:
        super().setup()
        if self.config.count > 1 and self.config.layers:
            self.cross = CrossProjection(self.decoder, self.config.layers, self.dtype)

    def make_norm(self) -> nn.Module:
        """Behind their layers."""
        return LayerNorm(dtype=self.dtype)

    def attend_to(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """What their layers attend to, as `WhisperDecoder.attend_to`."""
        return self.cross(self.alone(audio), real)

    @nn.compact
    def run(self, deterministic: bool, carry: Carry, *given: Any) -> Carry:
        """Runs the layers, and a norm, behind those of the decoder: `run_above` of it."""
        del deterministic  # nothing is dropped
        own = dataclasses.replace(self.decoder, lora=configs.Lora())
        places = range(own.layers, own.layers + self.config.layers)
        laid_out = self.has_variable("params", layer_name(0))
        carry = (self.alone(carry[0]), *carry[1:])
        (x, keys, values), _ = run_layers(own, self.dtype, laid_out, places, carry, *given)
        return self.norm(x), keys, values
