"""The multi-token heads: head m predicts, from one hidden state, the token m places ahead.

Head 1 is the decoder's own LM head and has no parameters here. Two kinds (arXiv 2409.08148):
*independent* heads are D x V projections of their own; *latent* heads are D x D maps followed by
the shared un-embedding. Both start equal to the LM head (our reading of the paper): independent
heads as copies of it, latent maps as the identity. Those added to a finished model start at zero
(`mtp_jax.training.initialization`). Beyond the paper, decoder layers of their own may stand before
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax import config as configs
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.decoders.llama import Carry, run_layers
from mtp_jax.models.layers import RMSNorm, parameter


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    del key
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


class Projection(NamedTuple):
    """Some heads whose logits are ``states @ kernel.T``.

    Attributes:
        heads: which of heads 1..M, counted from 0.
        states: [m, ..., D], one per head.
        kernel: [V, D].
    """

    heads: slice
    states: jax.Array
    kernel: jax.Array


class Heads(nn.Module):
    """Logits of heads 2..M.

    Attributes:
        config: kind, M and layers.
        decoder: what these are like; its width is D.
        vocab_size: V.
        dtype: of the products.
    """

    config: configs.Heads
    decoder: Any
    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        extra, width = self.config.count - 1, self.decoder.width
        if not extra:
            return
        if self.config.layers:
            self.norm = self.make_norm()
        if self.config.kind == "latent":
            shape = (extra, width, width)
            self.kernel = parameter(self, "kernel", _identity, (None, "embed", None), shape)
        else:  # the copy of the LM head is made by `start_as_lm_head`, once that exists
            shape = (extra, width, self.vocab_size)
            zeros = nn.initializers.zeros
            self.kernel = parameter(self, "kernel", zeros, (None, "embed", "vocab"), shape)

    def make_norm(self) -> nn.Module:
        """Behind their layers."""
        return RMSNorm(self.decoder.norm_epsilon, self.dtype)

    @nn.compact
    def run(self, deterministic: bool, carry: Carry, *given: Any) -> Carry:
        """Runs the layers, and a norm, behind those of the decoder: `run_above` of `Llama`."""
        own = dataclasses.replace(self.decoder, lora=configs.Lora())
        places = range(own.layers, own.layers + self.config.layers)
        laid_out = self.has_variable("params", layer_name(0))
        carry = (self.alone(carry[0]), *carry[1:])
        x, keys, values = run_layers(
            own, self.dtype, deterministic, laid_out, places, carry, *given
        )
        return self.norm(x), keys, values

    def alone(self, x: jax.Array) -> jax.Array:
        """`x`, through which no gradient of these heads flows if they are detached."""
        return jax.lax.stop_gradient(x) if self.config.detached else x

    def __call__(
        self, hidden: jax.Array, unembed: Callable[[jax.Array], jax.Array], head: jax.Array | int
    ) -> jax.Array:
        """float32[..., V] logits of one head, 2 <= `head` <= M (may be traced), at [..., D]."""
        y = hidden.astype(self.dtype) @ self.kernel[head - 2].astype(self.dtype)
        return unembed(y) if self.config.kind == "latent" else y.astype(jnp.float32)

    def projections(
        self, first: jax.Array, later: jax.Array, lm_head: jax.Array
    ) -> list[Projection]:
        """How the logits of all heads are made, in as few products as there are kernels.

        Args:
            first: [..., D], what head 1 reads; `later`: [..., D], what heads 2..M read.
            lm_head: [V, D], the un-embedding of head 1.
        """
        if self.config.count == 1:
            return [Projection(slice(0, 1), first[None], lm_head)]
        if self.config.kind == "independent":
            kernels = [self.kernel[m].T for m in range(self.config.count - 1)]
            pairs = [(first, lm_head), *((later, kernel) for kernel in kernels)]
            return [Projection(slice(m, m + 1), x[None], k) for m, (x, k) in enumerate(pairs)]
        kernel = self.kernel.astype(self.dtype)
        mapped = jnp.einsum("...d,mdx->m...x", later.astype(self.dtype), kernel)
        if self.config.detached:  # these read a kernel that gets no gradient
            return [
                Projection(slice(0, 1), first[None], lm_head),
                Projection(slice(1, None), mapped, self.alone(lm_head)),
            ]
        return [Projection(slice(None), jnp.concatenate([first[None], mapped]), lm_head)]

    def all(self, hidden: jax.Array, unembed: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """float32[..., M - 1, V] logits of heads 2..M at hidden states [..., D]."""
        if self.config.count == 1:
            return jnp.zeros((*hidden.shape[:-1], 0, self.vocab_size), jnp.float32)
        kernel = self.kernel.astype(self.dtype)
        y = jnp.einsum("...d,mdx->...mx", hidden.astype(self.dtype), kernel)
        return unembed(y) if self.config.kind == "latent" else y.astype(jnp.float32)


def start_as_lm_head(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """Parameters of a `SpeechLlama` whose every head equals the LM head.

    Latent heads are made so; independent ones become copies here.
    """
    if kind == "latent" or "heads" not in params:
        return params
    decoder, kernel = params["decoder"], params["heads"]["kernel"]
    lm_head = decoder.get("lm_head", decoder["embedding"])
    copies = jnp.broadcast_to(lm_head.T, kernel.shape)
    return params | {"heads": params["heads"] | {"kernel": copies}}
