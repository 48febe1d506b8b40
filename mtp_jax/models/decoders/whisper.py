"""Whisper's decoder (Radford et al., 2022): text that attends to itself and to the audio."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.config import Lora
from mtp_jax.config import WhisperDecoder as Config
from mtp_jax.distributed.sharding import constrain
from mtp_jax.models.attention import (
    Prompt,
    attend_across,
    attend_in_groups,
    attend_with_prompt,
)
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.kv_cache import CrossCache, KVCache, by_head, write
from mtp_jax.models.layers import LayerNorm, Linear, parameter, zero_padding
from mtp_jax.models.mixed_precision import along_rows, matmul, matmul_transposed, take_rows

Carry = tuple[jax.Array, jax.Array | None, jax.Array | None]
Cross = tuple[jax.Array, jax.Array]  # a layer's keys and values of the audio
_WHOLE = ("batch", None, None)  # axes of what a layer hands on
_gelu = functools.partial(jax.nn.gelu, approximate=False)


class CrossProjection(nn.Module):
    """Keys and values that all layers make of the audio, once for each utterance.

    Attributes:
        config: sizes.
        layers: how many layers there are.
        dtype: of the products.
    """

    config: Config
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """Of the encoder's hidden states [B, T, D], bool[B, T] of which are real."""
        c, width = self.config, audio.shape[-1]
        init, axes = nn.initializers.lecun_normal(batch_axis=0), ("layers", "embed", "heads")
        shape = (self.layers, width, c.width)
        audio = zero_padding(audio, real).astype(self.dtype)

        def project(name: str, biased: bool, order: tuple[int, int]) -> tuple[jax.Array, ...]:
            kernel = parameter(self, f"{name}_kernel", init, axes, shape)
            rows = [matmul(audio, kernel[i]) for i in range(self.layers)]
            if biased:
                zeros = nn.initializers.zeros
                bias = parameter(self, f"{name}_bias", zeros, axes[::2], shape[::2])
                rows = [y + along_rows(bias[i], y.shape, y.dtype) for i, y in enumerate(rows)]
            by_head = (y.reshape(*y.shape[:2], c.heads, -1) for y in rows)
            turned = (jnp.transpose(y, (0, 2, *order)) for y in by_head)
            return tuple(constrain(y, "batch", "heads", None, None) for y in turned)

        keys, values = project("key", False, (3, 1)), project("value", True, (1, 3))
        return CrossCache(keys, values, real)


class Layer(nn.Module):
    """Attention to the text, attention to the audio, and a GELU layer, each behind a LayerNorm.

    Attributes:
        config: sizes.
        dtype: of activations.
        joined: whether query, key and value kernels are one array, as
            `mtp_jax.models.decoders.layout` makes them.
    """

    config: Config
    dtype: jnp.dtype
    joined: bool = False

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: jax.Array,
        cross: Cross,
        audio_real: jax.Array,
        slots: jax.Array,
        mask: jax.Array,
        prompt: Prompt,
    ) -> tuple[Carry, jax.Array]:
        c, (x, keys, values) = self.config, carry
        linear = functools.partial(Linear, dtype=self.dtype, lora=c.lora)

        def heads(y: jax.Array) -> jax.Array:
            y = y.reshape(*x.shape[:2], c.heads, -1)
            return constrain(y, "batch", None, "heads", None)

        y = LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        if self.joined:
            y = linear(3 * c.width, ("embed", "heads"), True, name="query_key_value")(y)
            q, k, v = (heads(part) for part in jnp.split(y, 3, axis=-1))
        else:
            q, k, v = (
                heads(linear(c.width, ("embed", "heads"), name != "key", name=name)(y))
                for name in ("query", "key", "value")
            )
        if keys is None or values is None:
            y = attend_in_groups(q, k, v, mask)
        else:
            keys, values = write(keys, layer, slots, k), write(values, layer, slots, v)
            k, v = by_head(keys[layer], c.heads), by_head(values[layer], c.heads)
            if prompt is None:
                y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
            else:
                given_k, given_v = (by_head(x, c.heads) for x in prompt)
                y = attend_with_prompt(q, k, v, given_k, given_v, mask)
        y = linear(c.width, ("heads", "embed"), True, name="output")(y.reshape(*x.shape[:2], -1))
        x = constrain(x + y, *_WHOLE)
        x, q = attend_and_transform(c, self.dtype, x, cross, audio_real)
        return (x, keys, values), q


def attend_and_transform(
    config: Config, dtype: jnp.dtype, x: jax.Array, cross: Cross, audio_real: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention to the audio and the GELU layer of the module that calls.

    Args:
        config, dtype: as in `Layer`.
        x: [B K, S, D].
        cross: keys and values of the audio of B utterances; `audio_real`: bool[B, T].

    Returns:
        [B K, S, D], and the queries [B K, S, N, H] that were put to the audio.
    """
    linear = functools.partial(Linear, dtype=dtype, lora=config.lora)

    def norm(x: jax.Array, name: str) -> jax.Array:
        normed: jax.Array = LayerNorm(dtype=dtype, name=name)(x)
        return normed

    def added(x: jax.Array, y: jax.Array, name: str, axis: str) -> jax.Array:
        y = linear(config.width, (axis, "embed"), True, name=name)(y.reshape(*x.shape[:2], -1))
        return constrain(x + y, *_WHOLE)

    q = linear(config.width, ("embed", "heads"), True, name="cross_query")(norm(x, "cross_norm"))
    q = constrain(q.reshape(*x.shape[:2], config.heads, -1), "batch", None, "heads", None)
    x = added(x, attend_across(q, *cross, audio_real), "cross_output", "heads")
    y = linear(4 * config.width, ("embed", "mlp"), True, name="up")(norm(x, "feedforward_norm"))
    y = constrain(_gelu(y), "batch", None, "mlp")
    return added(x, y, "down", "mlp"), q


def run_layers(
    config: Config,
    dtype: jnp.dtype,
    laid_out: bool,
    places: range,
    carry: Carry,
    cross: CrossCache,
    slots: jax.Array,
    mask: jax.Array,
    prompt: Prompt,
) -> tuple[Carry, jax.Array]:
    """Runs layers of the module that calls.

    Args:
        config, dtype: as in `Layer`.
        laid_out: as in `mtp_jax.models.decoders.llama.run_layers`.
        places: of the layers in the caches.
        carry: [B, S, D] and, with a cache, its keys and values, of all places.
        cross: of all places.
        slots, mask: of the B x S positions.
        prompt: keys and values, of all places, that rows share.

    Returns:
        The carry, and the queries [layers, B, S, N, H] that were put to the audio.
    """
    if laid_out:
        queries = []
        for n, place in enumerate(places):
            given = None if prompt is None else (prompt[0][place], prompt[1][place])
            own = cross.keys[place], cross.values[place]
            layer = Layer(dataclasses.replace(config, lora=Lora()), dtype, True, name=layer_name(n))
            carry, q = layer(carry, jnp.int32(place), own, cross.real, slots, mask, given)
            queries.append(q)
        return carry, jnp.stack(queries)
    stack = nn.scan(
        Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=len(places),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, dtype, name="layers")
    here = slice(places.start, places.stop)
    if prompt is not None:
        prompt = prompt[0][here], prompt[1][here]
    own = jnp.stack(cross.keys[here]), jnp.stack(cross.values[here])
    out: tuple[Carry, jax.Array] = stack(
        carry, jnp.array(places), own, cross.real, slots, mask, prompt
    )
    return out


class WhisperDecoder(nn.Module):
    """Embeddings in, final hidden states out; `embed` and `unembed` are the two ends.

    Attributes:
        config: sizes.
        vocab_size: V.
        dtype: of activations and of the caches.
        layers_above: of whoever runs behind this one, for which its cache has capacity.
    """

    config: Config
    vocab_size: int
    dtype: jnp.dtype = jnp.float32
    layers_above: int = 0

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        shape = (self.vocab_size, c.width)
        self.embedding = parameter(self, "embedding", init, ("vocab", "embed"), shape)
        shape = (c.positions, c.width)
        self.position_embedding = parameter(self, "positions", init, (None, "embed"), shape)
        self.cross = CrossProjection(c, c.layers, self.dtype)
        self.final_norm = LayerNorm(dtype=self.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [..., D] of int32[...] tokens, without their positions."""
        return take_rows(self.embedding, tokens).astype(self.dtype)

    def unembedding(self) -> jax.Array:
        """[V, D] kernel of head 1, which is the embedding."""
        return self.embedding

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits of head 1 at hidden states [..., D]."""
        return matmul_transposed(hidden.astype(self.dtype), self.embedding)

    def attend_to(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """What the layers attend to of [B, T, D] hidden states of the encoder, bool[B, T] real."""
        return self.cross(audio, real)

    def empty_cache(self, cross: CrossCache, slots: int) -> KVCache:
        """A cache of at most `slots` positions for each utterance of `cross`."""
        c, layers = self.config, self.config.layers + self.layers_above
        rows, size = len(cross.real), c.width // c.heads
        cache = KVCache.empty(layers, rows, slots, c.heads, size, self.dtype)
        return dataclasses.replace(cache, cross=cross)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        real: jax.Array,
        cache: KVCache | CrossCache,
        run_above: Callable[..., Carry] | None = None,
    ) -> tuple[jax.Array, KVCache | None, jax.Array]:
        """Runs the decoder over new positions.

        Args:
            x: [B, S, D] embeddings without positions; padding may hold anything, NaN included.
            real: bool[B, S]; padding may stand anywhere and takes no position.
            cache: what was seen before; with that of the audio alone, the S positions are all there
                is.
            run_above: given the carry, the queries and what layers are given, runs what stands
                above; returns the carry.

        Returns:
            Hidden states [B, S, D] after the final norm (of padding: finite, meaningless), behind
            them what `run_above` makes of those before it; the cache with the real positions
            added; and the queries [layers, B, S, N, H] that were put to the audio.
        """
        c = self.config
        prompt: Prompt = None
        text, cross = (None, cache) if isinstance(cache, CrossCache) else (cache, cache.cross)
        assert cross is not None
        if text is None:
            positions = slots = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
            causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
            mask = causal & real[:, None, :]
            keys = values = None
        else:
            positions, slots = text.place(real)
            mask = text.visible(positions)
            keys, values = text.keys, text.values
            if text.prompt is not None:
                prompt = (text.prompt.keys, text.prompt.values)
        places = jnp.take(self.position_embedding, positions, axis=0, mode="clip")
        x = x.astype(self.dtype) + places.astype(self.dtype)
        x = zero_padding(x, real)
        given = cross, slots, mask, prompt
        carry: Carry = (x, keys, values)
        laid_out = self.has_variable("params", layer_name(0))
        carry, queries = run_layers(c, self.dtype, laid_out, range(c.layers), carry, *given)
        hidden = self.final_norm(carry[0])
        if run_above is not None:
            carry = run_above(carry, queries, *given)
            hidden = jnp.concatenate([hidden, carry[0]], axis=-1)
        _, keys, values = carry
        if text is not None and keys is not None and values is not None:
            added = jnp.sum(real, axis=1, dtype=jnp.int32)
            text = dataclasses.replace(text, keys=keys, values=values, length=text.length + added)
        return hidden, text, queries

    def attention(
        self, queries: jax.Array, cross: CrossCache, heads: tuple[tuple[int, ...], ...]
    ) -> jax.Array:
        """float32[A, B, S, T], how some heads weigh the frames of the audio.

        Args:
            queries: [layers, B, S, N, H], of `__call__`.
            cross: the audio's keys.
            heads: layer and place of each of the A heads.
        """
        q = jnp.stack([queries[layer, :, :, place] for layer, place in heads])
        k = jnp.stack([cross.keys[layer][:, place] for layer, place in heads])
        scores = jnp.einsum("absh,abht->abst", q, k) * q.shape[-1] ** -0.5
        lowest = jnp.finfo(jnp.float32).min
        return jax.nn.softmax(jnp.where(cross.real[:, None], scores.astype(jnp.float32), lowest))
