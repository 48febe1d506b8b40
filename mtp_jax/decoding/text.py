"""The text that a loop has emitted so far, and the small functions that all loops share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Emitted:
    """The text so far.

    Attributes:
        tokens: int32[B, L], EOS included, 0 beyond `length`.
        log_probs: float32[B, L] of each token, 0 beyond `length`.
        length: int32[B].
        finished: bool[B]: EOS was emitted, the limit L was reached, or the row is filler.
        call: int32[B, L], the decoder call that emitted each token, 0 beyond `length`.
        calls: int32, calls that have emitted so far: each emits once.
    """

    tokens: jax.Array
    log_probs: jax.Array
    length: jax.Array
    finished: jax.Array
    call: jax.Array
    calls: jax.Array

    @classmethod
    def empty(cls, active: jax.Array, max_tokens: int) -> Emitted:
        """No text yet; rows where bool[B] `active` is False are finished before they start."""
        shape = active.shape[0], max_tokens
        return cls(
            tokens=jnp.zeros(shape, jnp.int32),
            log_probs=jnp.zeros(shape),
            length=jnp.zeros(active.shape[0], jnp.int32),
            finished=~active,
            call=jnp.zeros(shape, jnp.int32),
            calls=jnp.int32(0),
        )

    @property
    def limit(self) -> int:
        """L."""
        return self.tokens.shape[1]

    def ends(self, block: jax.Array, eos: int) -> jax.Array:
        """bool[B, S]: the text is over with this token of `block`, by EOS or by the limit."""
        remaining = self.limit - self.length[:, None]
        return (block == eos) | (jnp.arange(1, block.shape[1] + 1) >= remaining)

    def emit(
        self, block: jax.Array, log_probs: jax.Array, count: jax.Array, eos: int
    ) -> tuple[Emitted, jax.Array]:
        """Adds the first `count` tokens of `block`, up to EOS or the limit.

        Args:
            block: int32[B, S]; `log_probs`: float32[B, S]; `count`: int32[B].
            eos: the token that ends a text.

        Returns:
            The longer text, and int32[B, S] the slot of each token of the block: L where it was not
            added, which a write with ``mode="drop"`` ignores.
        """
        ends = self.ends(block, eos)
        ends_before = jnp.cumsum(ends, axis=1) - ends
        offset = jnp.arange(block.shape[1])
        added = (offset < count[:, None]) & (ends_before == 0) & ~self.finished[:, None]
        slots = jnp.where(added, self.length[:, None] + offset, self.limit)
        at = jnp.arange(block.shape[0])[:, None], slots
        longer = Emitted(
            tokens=self.tokens.at[at].set(block, mode="drop"),
            log_probs=self.log_probs.at[at].set(log_probs, mode="drop"),
            length=self.length + jnp.sum(added, axis=1, dtype=jnp.int32),
            finished=self.finished | jnp.any(added & ends, axis=1),
            call=self.call.at[at].set(self.calls + 1, mode="drop"),
            calls=self.calls + 1,
        )
        return longer, slots


def most_likely(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32[...] token of the greatest of logits [..., V], and its float32[...] log-probability.

    Ties go to the lowest id. (A CPU takes twice as long for `argmax` as for the two reductions.)
    """
    size = logits.shape[-1]
    best = jnp.max(logits, axis=-1, keepdims=True)
    places = jnp.where(logits == best, jnp.arange(size, dtype=jnp.int32), size - 1)
    log_probs = -jnp.log(jnp.sum(jnp.exp(logits - best), axis=-1))
    return jnp.min(places, axis=-1), log_probs


def select_position(hidden: jax.Array, position: jax.Array) -> jax.Array:
    """[B, D] of hidden [B, S, D] at one int32[B] `position` per row."""
    return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]


def tested(accepted: jax.Array, ended: jax.Array) -> jax.Array:
    """bool[B, M - 1]: which drafts were tested.

    Args:
        accepted: bool[B, M - 1], whether the draft of head m would be accepted.
        ended: bool[B, M - 1], whether the text had ended before it.

    Returns:
        True where all drafts before were accepted and the text had not ended.
    """
    before = jnp.pad(accepted[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    reached = jnp.cumprod(before, axis=1).astype(bool)
    return reached[:, : accepted.shape[1]] & ~ended


def length_normalized(score: jax.Array, length: jax.Array, power: float | jax.Array) -> jax.Array:
    """float32[...] rank of hypotheses with these log-probabilities and lengths."""
    return score / jnp.maximum(length, 1) ** power
