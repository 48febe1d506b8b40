"""The key-value cache: left-aligned, one length per row.

Rejecting drafts is lowering `length`; nothing is copied. Slots at or beyond `length` may hold
anything finite: a query attends to the slots at or before its own position, all of which have been
written by then.

Several rows may go on from one prompt (the hypotheses of an utterance from its audio): the prompt
is then kept, and attended to, once, and only what each row added is moved when rows are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.layout import Layout, with_layout_constraint

from mtp_jax.distributed.sharding import constrain


@struct.dataclass
class CrossCache:
    """Keys and values of the audio, in a decoder that attends to it.

    Every layer has arrays of its own, as its products read them: a program that took them out of a
    stack, or turned them, would copy them in every call.

    Attributes:
        keys: of each layer [B, N, H, T].
        values: of each layer [B, N, T, H].
        real: bool[B, T], which frames there are.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    real: jax.Array

    def astype(self, dtype: jnp.dtype) -> CrossCache:
        """With keys and values in a type."""
        keys, values = ([x.astype(dtype) for x in y] for y in (self.keys, self.values))
        return dataclasses.replace(self, keys=tuple(keys), values=tuple(values))

    def row_major(self) -> CrossCache:
        """The same, with keys and values in memory in the order of their axes.

        XLA on a CPU would delay their transposition, and repeat it before each loop that reads it.
        """

        def put(x: jax.Array) -> jax.Array:
            return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

        keys, values = (tuple(put(x) for x in y) for y in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values)

    def __add__(self, other: CrossCache) -> CrossCache:
        """These layers, and above them those of `other`."""
        keys, values = self.keys + other.keys, self.values + other.values
        return dataclasses.replace(self, keys=keys, values=values)


@struct.dataclass
class KVCache:
    """Keys and values of every layer for the positions seen so far.

    Attributes:
        keys, values: [layers, B, C, G H], the heads side by side: a TPU pads the last two axes of
            an array to 8 or 16 by 128, so that an axis of their own would take up much of it.
        length: int32[B], slots of each row that are in use.
        position_offset: int32[B], subtracted from a slot's number to give the rotary position of
            the next token.
        kv_heads: G.
        prompt: what comes before, for B / K of `B` rows: row r goes on from its row r // K.
        cross: keys and values of the audio, for as many rows as `prompt` has, or for B.
        tokens: int32[B, C], the token of the text in each slot, negative where none is; None of
            decoders that need not look back at them. No prompt holds any.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    position_offset: jax.Array
    kv_heads: int = struct.field(pytree_node=False)
    prompt: KVCache | None = None
    cross: CrossCache | None = None
    tokens: jax.Array | None = None

    @classmethod
    def empty(
        cls, layers: int, rows: int, slots: int, kv_heads: int, head_size: int, dtype: jnp.dtype
    ) -> KVCache:
        """A cache with no slot in use."""
        shape = (layers, rows, slots, kv_heads, head_size)
        zero = constrain(jnp.zeros(shape, dtype), "layers", "batch", None, "kv_heads", None)
        return cls(
            keys=zero.reshape(layers, rows, slots, -1),
            values=zero.reshape(layers, rows, slots, -1),
            length=jnp.zeros(rows, jnp.int32),
            position_offset=jnp.zeros(rows, jnp.int32),
            kv_heads=kv_heads,
        )

    @property
    def slots(self) -> int:
        """C."""
        return self.keys.shape[2]

    @property
    def start(self) -> jax.Array:
        """int32[B], positions of each row that its prompt holds."""
        if self.prompt is None:
            return jnp.zeros_like(self.length)
        each = len(self.length) // len(self.prompt.length)
        return jnp.repeat(self.prompt.length, each)

    def place(self, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the next positions go.

        Args:
            real: bool[B, S]; padding takes no slot.

        Returns:
            int32[B, S] positions (of padding: the position before it), and int32[B, S] slots to
            write (of padding: C, which a write with ``mode="drop"`` ignores).
        """
        slots = self.length[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
        return self.start[:, None] + slots, jnp.where(real, slots, self.slots)

    def visible(self, positions: jax.Array) -> jax.Array:
        """bool[B, S, P + C]: what int32[B, S] positions attend to: P slots of the prompt, C own."""
        start = self.start[:, None, None]
        own = jnp.arange(self.slots) <= positions[..., None] - start
        if self.prompt is None:
            return own
        given = jnp.arange(self.prompt.slots) < start
        given = jnp.broadcast_to(given, (*positions.shape, self.prompt.slots))
        return jnp.concatenate([given, own], axis=-1)

    def fork(self, each: int, slots: int) -> KVCache:
        """`each` rows of `slots` free slots in place of every row, going on from it."""
        if self.prompt is not None:
            raise ValueError("a cache that has a prompt cannot branch again")
        (layers, rows, _, size), heads = self.keys.shape, self.kv_heads
        tokens = None if self.tokens is None else no_tokens(rows * each, slots)
        return dataclasses.replace(
            self.empty(layers, rows * each, slots, heads, size // heads, self.keys.dtype),
            position_offset=jnp.repeat(self.position_offset, each),
            prompt=dataclasses.replace(self, cross=None, tokens=None),
            cross=self.cross,
            tokens=tokens,
        )

    def gather_rows(self, places: jax.Array) -> KVCache:
        """Of the rows of prompt p those at int32[N] ``places[p]``; no prompt is copied.

        Rows are picked prompt by prompt: where these are split over devices, none needs another's.
        """

        def pick(x: jax.Array, axis: int) -> jax.Array:
            take = functools.partial(jnp.take, axis=axis, mode="clip")
            return jax.vmap(take, (axis, 0), axis)(x, places)

        return self._by_prompt(pick)

    def concatenate(self, other: KVCache) -> KVCache:
        """The rows of each prompt, and behind them those of `other`, which has the same prompts."""
        return self._by_prompt(lambda x, y, axis: jnp.concatenate([x, y], axis + 1), other)

    def _by_prompt(self, change: Callable[..., jax.Array], *others: KVCache) -> KVCache:
        """With what `change` makes of every array that has rows, and of those of `others`.

        It is given arrays [..., prompts, rows of each, ...], and the axis of the prompts.
        """
        prompts = 1 if self.prompt is None else len(self.prompt.length)
        made: dict[str, Any] = {}
        axes = {"keys": 1, "values": 1, "length": 0, "position_offset": 0, "tokens": 0}
        for name, axis in axes.items():
            if getattr(self, name) is None:
                continue
            arrays = (getattr(cache, name) for cache in (self, *others))
            split = (x.reshape(*x.shape[:axis], prompts, -1, *x.shape[axis + 1 :]) for x in arrays)
            x = change(*split, axis)
            made[name] = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
        return dataclasses.replace(self, **made)

    def rollback(self, rejected: jax.Array) -> KVCache:
        """The cache without the last int32[B] `rejected` positions of each row."""
        return dataclasses.replace(self, length=self.length - rejected)


def write(store: jax.Array, layer: jax.Array, slots: jax.Array, x: jax.Array) -> jax.Array:
    """Writes `x` [B, S, G, H] to int32[B, S] slots of one layer of `store` [layers, B, C, G H]."""
    rows = jnp.arange(slots.shape[0])[:, None]
    x = x.reshape(*slots.shape, -1).astype(store.dtype)
    return store.at[layer, rows, slots].set(x, mode="drop")


def no_tokens(rows: int, slots: int) -> jax.Array:
    """int32[rows, slots], `KVCache.tokens` of an empty text."""
    return jnp.full((rows, slots), -1, jnp.int32)


def by_head(kept: jax.Array, kv_heads: int) -> jax.Array:
    """[B, C, G, H] of a layer's keys or values."""
    return kept.reshape(*kept.shape[:2], kv_heads, -1)
