"""The LLaMA decoder (Touvron et al., 2023): one forward pass, with a cache or without."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Decoder
from mtp_jax.nn.cache import KVCache, write
from mtp_jax.nn.layers import (
    Linear,
    RMSNorm,
    parameter,
    rotary_frequencies,
    rotate,
    zero_padding,
)

Carry = tuple[jax.Array, jax.Array | None, jax.Array | None]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions."""

    config: Decoder
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array | None,
        values: jax.Array | None,
        layer: jax.Array,
        positions: jax.Array,
        slots: jax.Array,
        mask: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        c, (rows, width) = self.config, x.shape[:2]
        linear = functools.partial(Linear, dtype=self.dtype, lora=c.lora)

        def project(heads: int, axis: str, name: str) -> jax.Array:
            y = linear(heads * c.head_size, ("embed", axis), name=name)(x)
            return y.reshape(rows, width, heads, c.head_size)

        frequencies, factor = rotary_frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        q = rotate(project(c.query_heads, "heads", "query"), positions, frequencies, factor)
        k = rotate(project(c.kv_heads, "kv_heads", "key"), positions, frequencies, factor)
        v = project(c.kv_heads, "kv_heads", "value")
        if keys is not None and values is not None:
            keys, values = write(keys, layer, slots, k), write(values, layer, slots, v)
            k, v = keys[layer], values[layer]
        y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        y = y.reshape(rows, width, c.query_heads * c.head_size)
        out = linear(c.width, ("heads", "embed"), name="output")(y)
        return out, keys, values


class Layer(nn.Module):
    """Attention and SwiGLU (Shazeer, 2020), each behind an RMSNorm and added to its input."""

    config: Decoder
    dtype: jnp.dtype
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: jax.Array,
        positions: jax.Array,
        slots: jax.Array,
        mask: jax.Array,
    ) -> tuple[Carry, None]:
        c, (x, keys, values) = self.config, carry
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(c.norm_epsilon, self.dtype, name=name)

        def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
            return Linear(features, axes, dtype=self.dtype, lora=c.lora, name=name)

        y, keys, values = Attention(c, self.dtype, name="attention")(
            norm("attention_norm")(x), keys, values, layer, positions, slots, mask
        )
        x = x + drop(y)
        y = norm("feedforward_norm")(x)
        gate = nn.silu(linear(c.feedforward, ("embed", "mlp"), "gate")(y))
        y = gate * linear(c.feedforward, ("embed", "mlp"), "up")(y)
        x = x + drop(linear(c.width, ("mlp", "embed"), "down")(y))
        return (x, keys, values), None


class Llama(nn.Module):
    """Embeddings in, final hidden states out; `embed` and `unembed` are the two ends.

    Attributes:
        config: sizes.
        vocab_size: V.
        dtype: of activations and of the cache.
    """

    config: Decoder
    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c = self.config
        init, axes = nn.initializers.normal(c.width**-0.5), ("vocab", "embed")
        shape = (self.vocab_size, c.width)
        self.embedding = parameter(self, "embedding", init, axes, shape)
        if not c.tied:
            self.lm_head = parameter(self, "lm_head", init, axes, shape)
        self.final_norm = RMSNorm(c.norm_epsilon, self.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [..., D] of int32[...] tokens."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

    def expected(self, probabilities: jax.Array) -> jax.Array:
        """Embeddings [..., D] of float32[..., V] tokens of which only the odds are known."""
        return probabilities.astype(self.dtype) @ self.embedding.astype(self.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits of head 1 at hidden states [..., D]."""
        kernel = self.embedding if self.config.tied else self.lm_head
        logits = hidden.astype(self.dtype) @ kernel.T.astype(self.dtype)
        return logits.astype(jnp.float32)

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache for `rows` utterances of at most `slots` positions each."""
        c = self.config
        return KVCache.empty(c.layers, rows, slots, c.kv_heads, c.head_size, self.dtype)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        real: jax.Array,
        cache: KVCache | None = None,
        deterministic: bool = True,
        rewind: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the decoder over new positions.

        Args:
            x: [B, S, D] embeddings; padding may hold anything, NaN included.
            real: bool[B, S]; padding may stand anywhere and takes no position.
            cache: what was seen before; without it the S positions are all there is.
            deterministic: False drops residual branches at ``config.dropout``.
            rewind: int32[B, S], subtracted from the rotary positions, which count real positions
                from 0.

        Returns:
            Hidden states [B, S, D] after the final norm (of padding: finite, meaningless), and the
            cache with the real positions added.
        """
        c = self.config
        x = zero_padding(x.astype(self.dtype), real)
        if cache is None:
            positions = slots = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
            causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
            mask = causal & real[:, None, :]
            carry: Carry = (x, None, None)
        else:
            positions, slots = cache.place(real)
            mask = jnp.arange(cache.slots) <= positions[:, :, None]
            carry = (x, cache.keys, cache.values)
        block = nn.remat(Layer, prevent_cse=not c.scan_layers) if c.remat else Layer
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            unroll=1 if c.scan_layers else c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        (x, keys, values), _ = stack(c, self.dtype, deterministic, name="layers")(
            carry, jnp.arange(c.layers), positions - rewind, slots, mask
        )
        if keys is not None and values is not None and cache is not None:
            added = jnp.sum(real, axis=1, dtype=jnp.int32)
            cache = dataclasses.replace(
                cache, keys=keys, values=values, length=cache.length + added
            )
        return self.final_norm(x), cache
