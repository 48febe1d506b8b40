"""How decoding sees a model, and what every strategy returns.

The loops import no model. They are programs over callables, made inside the same ``jit`` as the
loop, so that a callable may close over what it needs (parameters, the encoder's output). What they
carry as a hidden state [D] only these read: it may hold more than the decoder's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.edit_distance import DraftText
from mtp_jax.models.kv_cache import KVCache


class Drafts(NamedTuple):
    """Guesses at the tokens behind head 1's.

    Attributes:
        tokens: int32[B, M - 1], of heads 2..M.
        probabilities: float32[B, M - 1], each head's for its token.
    """

    tokens: jax.Array
    probabilities: jax.Array


class Drafter(Protocol):
    """Turns one hidden state a row into drafts."""

    def __call__(self, hidden: jax.Array, first: jax.Array) -> Drafts:
        """Drafts the tokens behind `first`.

        Args:
            hidden: [B, D] at the last accepted position.
            first: int32[B], head 1's token there, which is certain.
        """


class DecoderFunctions(NamedTuple):
    """A recogniser with its audio already encoded.

    Attributes:
        prefill: capacity -> (hidden [B, D] that predicts the first token, cache with as many slots
            free behind the prompt).
        extend: (tokens int32[B, S], count int32[B], cache) -> (hidden [B, S, D], cache); feeds the
            first `count` tokens of each row.
        next_token: hidden [..., D] -> logits [..., V] of head 1.
        later_tokens: hidden [..., D] -> logits [..., M - 1, V] of heads 2..M.
        draft: a `Drafter`: what heads 2..M say.
        heads: M.
        eos: the token that ends a text.
        ctc_hypothesis: what CTC reads, if it does so in the decoder's tokens.
    """

    prefill: Callable[[int], tuple[jax.Array, KVCache]]
    extend: Callable[[jax.Array, jax.Array, KVCache], tuple[jax.Array, KVCache]]
    next_token: Callable[[jax.Array], jax.Array]
    later_tokens: Callable[[jax.Array], jax.Array]
    draft: Drafter
    heads: int
    eos: int
    ctc_hypothesis: DraftText | None = None


@struct.dataclass
class Emitted:
    """The text so far.

    Attributes:
        tokens: int32[B, L], EOS included, 0 beyond `length`.
        length: int32[B].
        finished: bool[B]: EOS was emitted, the limit L was reached, or the row is filler.
        call: int32[B, L], of the decoder calls the one that emitted each token, 0 beyond `length`.
        calls: int32, how many calls have emitted so far: each emits once.
    """

    tokens: jax.Array
    length: jax.Array
    finished: jax.Array
    call: jax.Array
    calls: jax.Array

    @classmethod
    def nothing(cls, active: jax.Array, max_tokens: int) -> Emitted:
        """No text yet; rows where bool[B] `active` is False are finished before they start."""
        return cls(
            tokens=jnp.zeros((active.shape[0], max_tokens), jnp.int32),
            length=jnp.zeros(active.shape[0], jnp.int32),
            finished=~active,
            call=jnp.zeros((active.shape[0], max_tokens), jnp.int32),
            calls=jnp.int32(0),
        )

    @property
    def limit(self) -> int:
        """L."""
        return self.tokens.shape[1]

    def ends(self, block: jax.Array, eos: int) -> jax.Array:
        """bool[B, S]: the text is over with this token of `block`, by EOS or by the limit."""
        capacity = self.limit - self.length[:, None]
        return (block == eos) | (jnp.arange(1, block.shape[1] + 1) >= capacity)

    def emit(self, block: jax.Array, count: jax.Array, eos: int) -> tuple[Emitted, jax.Array]:
        """Adds the first `count` tokens of `block`, up to EOS or the limit.

        Args:
            block: int32[B, S]; `count`: int32[B].
            eos: the token that ends a text.

        Returns:
            The longer text, and int32[B] how many tokens it gained (0 in finished rows).
        """
        ends = self.ends(block, eos)
        before = jnp.cumsum(ends, axis=1) - ends  # ends that come before this token
        offset = jnp.arange(block.shape[1])
        kept = (offset < count[:, None]) & (before == 0) & ~self.finished[:, None]
        slots = jnp.where(kept, self.length[:, None] + offset, self.limit)
        rows = jnp.arange(block.shape[0])[:, None]
        gained = jnp.sum(kept, axis=1, dtype=jnp.int32)
        longer = Emitted(
            tokens=self.tokens.at[rows, slots].set(block, mode="drop"),
            length=self.length + gained,
            finished=self.finished | jnp.any(kept & ends, axis=1),
            call=self.call.at[rows, slots].set(self.calls + 1, mode="drop"),
            calls=self.calls + 1,
        )
        return longer, gained


@struct.dataclass
class NBest:
    """A list of hypotheses for each utterance, the best first.

    Attributes:
        tokens: int32[B, K, L], EOS included where it was reached, 0 beyond `length`.
        length: int32[B, K].
        log_probs: float32[B, K, L] of each token, 0 beyond `length`.
        real: bool[B, K]; lists may be shorter than K.
    """

    tokens: jax.Array
    length: jax.Array
    log_probs: jax.Array
    real: jax.Array


@struct.dataclass
class Decoded:
    """What a strategy returns.

    Attributes:
        tokens: int32[B, L], EOS included where it was reached, 0 beyond `length`.
        length: int32[B].
        calls: int32[B], forward passes of the decoder while the row was unfinished, the pass over
            the prompt included.
        proposed, accepted: int32[B, M - 1], drafts of heads 2..M that were put to the test, the
            drafts before them having been accepted, and those that passed; of drafts that CTC
            made, int32[B, S - 1] where a call is S tokens wide.
        loop_steps: int32, forward passes of the batch.
        call: int32[B, L], in which of the row's calls, counted from 1, each token was emitted; 0
            beyond `length`.
        nbest: of strategies that make one.
    """

    tokens: jax.Array
    length: jax.Array
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    loop_steps: jax.Array
    call: jax.Array
    nbest: NBest | None = None


class Strategy(Protocol):
    """A frozen pytree dataclass: what shapes the program is static, what a sweep varies a leaf.

    Strategies whose outputs are compared to the last bit reserve the same `max_tokens` slots behind
    the prompt: attention over more slots may differ in the last bits. Drafts beyond the limit have
    no slot and are never needed.
    """

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """Decodes every row where bool[B] `active` is True, to at most `max_tokens` tokens."""


def most_likely(logits: jax.Array) -> jax.Array:
    """int32[...] token of the greatest of logits [..., V]; ties go to the lowest id."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def at(hidden: jax.Array, position: jax.Array) -> jax.Array:
    """[B, D] of hidden [B, S, D] at one int32[B] `position` a row."""
    return jnp.take_along_axis(hidden, position[:, None, None], axis=1)[:, 0]


def tested(passed: jax.Array, ends: jax.Array) -> jax.Array:
    """bool[B, M - 1]: which drafts were put to the test.

    Args:
        passed: bool[B, M - 1], whether the draft of head m would pass.
        ends: bool[B, M - 1], whether the text was over before it.

    Returns:
        True where all drafts before passed and the text was not over.
    """
    reached = jnp.cumprod(jnp.pad(passed[:, :-1], ((0, 0), (1, 0)), constant_values=True), axis=1)
    return reached.astype(bool)[:, : passed.shape[1]] & ~ends


def normalized(score: jax.Array, length: jax.Array, power: float | jax.Array) -> jax.Array:
    """float32[...], by which hypotheses of these log-probabilities and lengths are compared."""
    return score / jnp.maximum(length, 1) ** power
