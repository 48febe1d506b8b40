"""The LLaMA decoder (Touvron et al., 2023): one forward pass, with a cache or without.

What Qwen3 (norms on queries and keys) and Granite (four factors) add are fields of its config.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import Decoder, Lora
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.attention import Prompt, attend_in_groups, attend_with_prompt
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.kv_cache import KVCache, by_head, write
from mtp_jax.models.layers import (
    Dropout,
    Linear,
    RMSNorm,
    parameter,
    remat,
    rotary_frequencies,
    rotate,
    zero_padding,
)
from mtp_jax.models.mixed_precision import matmul_transposed, mean_of_rows, take_rows

Carry = tuple[jax.Array, jax.Array | None, jax.Array | None]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary positions.

    Attributes:
        config, dtype, joined: as in `Layer`.
    """

    config: Decoder
    dtype: jnp.dtype
    joined: bool = False

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
        prompt: Prompt,
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        c, (rows, width) = self.config, x.shape[:2]
        linear = functools.partial(Linear, dtype=self.dtype, lora=c.lora)

        heads = {"query": c.query_heads, "key": c.kv_heads, "value": c.kv_heads}
        axes = {"query": "heads", "key": "kv_heads", "value": "kv_heads"}

        def by_head_constrained(y: jax.Array, name: str) -> jax.Array:
            y = y.reshape(rows, width, heads[name], c.head_size)
            return constrain(y, "batch", None, axes[name], None)

        if self.joined:
            total = sum(heads.values()) * c.head_size
            y = linear(total, ("embed", "heads"), name="query_key_value")(x)
            ends = np.cumsum([n * c.head_size for n in heads.values()])[:-1].tolist()
            projected = dict(zip(heads, jnp.split(y, ends, axis=-1), strict=True))
        else:
            projected = {
                name: linear(heads[name] * c.head_size, ("embed", axes[name]), name=name)(x)
                for name in heads
            }
        q, k, v = (by_head_constrained(projected[name], name) for name in heads)
        if c.qk_norm:
            q = RMSNorm(c.norm_epsilon, self.dtype, name="query_norm")(q)
            k = RMSNorm(c.norm_epsilon, self.dtype, name="key_norm")(k)
        frequencies, factor = rotary_frequencies(c.head_size, c.rope_theta, c.rope_scaling)
        q = rotate(q, positions, frequencies, factor)
        k = rotate(k, positions, frequencies, factor)
        if c.attention_scale:  # every kind of attention scales by H ** -0.5
            q = q * (c.attention_scale * c.head_size**0.5)
        if keys is not None and values is not None:
            keys, values = write(keys, layer, slots, k), write(values, layer, slots, v)
            k, v = by_head(keys[layer], c.kv_heads), by_head(values[layer], c.kv_heads)
        if keys is None:
            y = attend_in_groups(q, k, v, mask)
        elif prompt is None:
            y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        else:
            given_k, given_v = (by_head(x, c.kv_heads) for x in prompt)
            y = attend_with_prompt(q, k, v, given_k, given_v, mask)
        y = y.reshape(rows, width, c.query_heads * c.head_size)
        out = linear(c.width, ("heads", "embed"), name="output")(y)
        return out, keys, values


class Layer(nn.Module):
    """Attention and SwiGLU (Shazeer, 2020), each behind an RMSNorm and added to its input.

    Attributes:
        config: sizes.
        dtype: of activations.
        deterministic: whether nothing is dropped.
        joined: whether kernels that multiply the same input are one array, as
            `mtp_jax.models.decoders.layout` makes them.
    """

    config: Decoder
    dtype: jnp.dtype
    deterministic: bool
    joined: bool = False

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: jax.Array,
        positions: jax.Array,
        slots: jax.Array,
        mask: jax.Array,
        prompt: Prompt,
    ) -> tuple[Carry, None]:
        c, (x, keys, values) = self.config, carry
        x = constrain(x, "batch", None, None)
        dropped = Dropout(c.dropout, self.deterministic)
        normed = RMSNorm(c.norm_epsilon, self.dtype, name="attention_norm")(x)
        y, keys, values = Attention(c, self.dtype, self.joined, name="attention")(
            normed, keys, values, layer, positions, slots, mask, prompt
        )
        x = constrain(x + residual(dropped(y), c), "batch", None, None)
        x = feedforward(c, self.dtype, c.lora, self.joined, x, dropped)
        return (x, keys, values), None


def feedforward(
    config: Decoder,
    dtype: jnp.dtype,
    lora: Lora,
    joined: bool,
    x: jax.Array,
    drop: Callable[[jax.Array], jax.Array] = lambda y: y,
) -> jax.Array:
    """The SwiGLU layer of the module that calls, behind its norm and added to `x` [B, S, D].

    Args:
        config, dtype, joined: as in `Layer`.
        lora: of its kernels.
        drop: what becomes of the branch in training.
    """
    y = RMSNorm(config.norm_epsilon, dtype, name="feedforward_norm")(x)

    def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
        return Linear(features, axes, dtype=dtype, lora=lora, name=name)

    if joined:
        y = linear(2 * config.feedforward, ("embed", "mlp"), "gate_up")(y)
        gate, up = jnp.split(y, 2, axis=-1)
    else:
        gate = linear(config.feedforward, ("embed", "mlp"), "gate")(y)
        up = linear(config.feedforward, ("embed", "mlp"), "up")(y)
    y = constrain(nn.silu(gate) * up, "batch", None, "mlp")
    y = drop(linear(config.width, ("mlp", "embed"), "down")(y))
    return constrain(x + residual(y, config), "batch", None, None)


def residual(y: jax.Array, config: Decoder) -> jax.Array:
    """What a sublayer adds, scaled as `config` says."""
    return y if config.residual_multiplier == 1 else y * config.residual_multiplier


def run_layers(
    config: Decoder,
    dtype: jnp.dtype,
    deterministic: bool,
    laid_out: bool,
    places: range,
    carry: Carry,
    positions: jax.Array,
    slots: jax.Array,
    mask: jax.Array,
    prompt: Prompt,
) -> Carry:
    """Runs layers of the module that calls.

    Args:
        config, dtype, deterministic: as in `Layer`.
        laid_out: whether its parameters are those of `layout.for_decoding`, which drop nothing, or
            stand in a stack named ``layers``.
        places: of the layers in the cache.
        carry: [B, S, D] and, with a cache, its keys and values, of all places.
        positions, slots, mask: of the B x S positions.
        prompt: keys and values, of all places, that rows share.
    """
    if laid_out:
        for n, place in enumerate(places):
            given = None if prompt is None else (prompt[0][place], prompt[1][place])
            own = dataclasses.replace(config, lora=Lora())
            layer = Layer(own, dtype, True, True, name=layer_name(n))
            carry, _ = layer(carry, jnp.int32(place), positions, slots, mask, given)
        return carry
    stack = nn.scan(
        remat(Layer, config),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=len(places),
        unroll=1 if config.scan_layers else len(places),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, dtype, deterministic, name="layers")
    if prompt is not None:
        prompt = prompt[0][places.start : places.stop], prompt[1][places.start : places.stop]
    carry, _ = stack(carry, jnp.array(places), positions, slots, mask, prompt)
    return carry


def scaled(hidden: jax.Array, config: Decoder) -> jax.Array:
    """Normed hidden states such that all logits made of them are divided as `config` says."""
    return hidden if config.logits_scaling == 1 else hidden / config.logits_scaling


class Llama(nn.Module):
    """Embeddings in, final hidden states out; `embed` and `unembed` are the two ends.

    Attributes:
        config: sizes.
        vocab_size: V.
        dtype: of activations and of the cache.
        layers_above: of whoever runs behind this one, for which its cache has capacity.
    """

    config: Decoder
    vocab_size: int
    dtype: jnp.dtype = jnp.float32
    layers_above: int = 0

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
        return take_rows(self.embedding, tokens).astype(self.dtype)

    def expected(self, probabilities: jax.Array) -> jax.Array:
        """Embeddings [..., D] of float32[..., V] tokens of which only the odds are known."""
        return mean_of_rows(probabilities.astype(self.dtype), self.embedding)

    def unembedding(self) -> jax.Array:
        """[V, D] kernel of head 1."""
        return self.embedding if self.config.tied else self.lm_head

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits of head 1 at hidden states [..., D]."""
        return matmul_transposed(hidden.astype(self.dtype), self.unembedding())

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache for `rows` utterances of at most `slots` positions each."""
        c = self.config
        layers = c.layers + self.layers_above
        return KVCache.empty(layers, rows, slots, c.kv_heads, c.head_size, self.dtype)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        real: jax.Array,
        cache: KVCache | None = None,
        deterministic: bool = True,
        position_offset: jax.Array | int = 0,
        run_above: Callable[..., Carry] | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the decoder over new positions.

        Args:
            x: [B, S, D] embeddings; padding may hold anything, NaN included.
            real: bool[B, S]; padding may stand anywhere and takes no position.
            cache: what was seen before; without it the S positions are all there is.
            deterministic: False drops residual branches at ``config.dropout``.
            position_offset: int32[B, S], subtracted from the rotary positions, which count real
                positions from 0.
            run_above: runs the `layers_above`, given what `run_layers` is, but for its first two
                and the places.

        Returns:
            Hidden states [B, S, D] after the final norm (of padding: finite, meaningless), behind
            them what `run_above` makes of those before it, and the cache with the real positions
            added.
        """
        c = self.config
        prompt: Prompt = None
        x = zero_padding(x.astype(self.dtype), real)
        if c.embedding_multiplier != 1:
            x = x * c.embedding_multiplier
        if cache is None:
            positions = slots = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
            causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
            mask = causal & real[:, None, :]
            carry: Carry = (x, None, None)
        else:
            positions, slots = cache.place(real)
            mask = cache.visible(positions)
            carry = (x, cache.keys, cache.values)
            if cache.prompt is not None:
                prompt = (cache.prompt.keys, cache.prompt.values)
        given = positions - position_offset, slots, mask, prompt
        laid_out = self.has_variable("params", layer_name(0))
        runs = c, self.dtype, deterministic, laid_out, range(c.layers)
        carry = run_layers(*runs, carry, *given)
        hidden = scaled(self.final_norm(carry[0]), c)
        if run_above is not None:
            carry = run_above(deterministic, carry, *given)
            hidden = jnp.concatenate([hidden, carry[0]], axis=-1)
        _, keys, values = carry
        if keys is not None and values is not None and cache is not None:
            added = jnp.sum(real, axis=1, dtype=jnp.int32)
            cache = dataclasses.replace(
                cache, keys=keys, values=values, length=cache.length + added
            )
        return hidden, cache
