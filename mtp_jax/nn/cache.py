"""The key-value cache: left-aligned, one length per row.

Rejecting drafts is lowering `length`; nothing is copied. Slots at or beyond `length` may hold
anything finite: a query attends to the slots at or before its own position, all of which have been
written by then.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KVCache:
    """Keys and values of every layer for the positions seen so far.

    Attributes:
        keys, values: [layers, B, C, G, H].
        length: int32[B], slots of each row that are in use.
        rewind: int32[B], by how much the rotary position of what comes next lags behind its slot.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    rewind: jax.Array

    @classmethod
    def empty(
        cls, layers: int, rows: int, slots: int, kv_heads: int, head_size: int, dtype: jnp.dtype
    ) -> KVCache:
        """A cache with no slot in use."""
        shape = (layers, rows, slots, kv_heads, head_size)
        return cls(
            keys=jnp.zeros(shape, dtype),
            values=jnp.zeros(shape, dtype),
            length=jnp.zeros(rows, jnp.int32),
            rewind=jnp.zeros(rows, jnp.int32),
        )

    @property
    def slots(self) -> int:
        """C."""
        return self.keys.shape[2]

    def place(self, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the next positions go.

        Args:
            real: bool[B, S]; padding takes no slot.

        Returns:
            int32[B, S] positions (of padding: the position before it), and int32[B, S] slots to
            write (of padding: C, which a write with ``mode="drop"`` ignores).
        """
        positions = self.length[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
        return positions, jnp.where(real, positions, self.slots)

    def shortened(self, rejected: jax.Array) -> KVCache:
        """The cache without the last int32[B] `rejected` positions of each row."""
        return dataclasses.replace(self, length=self.length - rejected)


def write(store: jax.Array, layer: jax.Array, slots: jax.Array, x: jax.Array) -> jax.Array:
    """Writes `x` [B, S, G, H] to int32[B, S] slots of one layer of `store` [layers, B, C, G, H]."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return store.at[layer, rows, slots].set(x.astype(store.dtype), mode="drop")
