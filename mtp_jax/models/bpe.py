"""What CTC reads, cut into the tokens of an LLM: its byte-pair encoding, on the device.

A pretrained decoder knows its own tokens, and one that reads them has nothing to learn but what to
correct. CTC has labels of its own, as it would not learn tens of thousands from hours of speech.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtp_jax.tokenizer.merges import Merges

_NONE = jnp.iinfo(jnp.int32).max


class Retokenized(NamedTuple):
    """Tokens of a batch.

    Attributes:
        tokens: int32[B, N], 0 behind the last.
        length: int32[B].
        parts: float32[B, N, R], how many bytes of each token come from each label.
    """

    tokens: jax.Array
    length: jax.Array
    parts: jax.Array


def retokenize(
    merges: Merges,
    labels: jax.Array,
    count: jax.Array,
    capacity: int,
    most: int,
    space_first: bool = False,
) -> Retokenized:
    """The LLM's tokens of the text that CTC labels spell.

    They are those of its tokenizer, as long as it splits words nowhere that a merge would join. A
    run of spaces counts as one, and a text ends without.

    Args:
        merges: of the LLM's tokenizer.
        labels: int32[B, R]; `count`: int32[B] of them are real.
        capacity: C, the greatest number of bytes, spaces included; bytes beyond it are dropped.
        most: N, the greatest number of tokens; tokens beyond it are dropped.
        space_first: a text begins with a space, as a Whisper's does, spelled or not; else without.
    """
    spelled = jnp.asarray(merges.spelled)[labels]
    real = (jnp.arange(labels.shape[1]) < count[:, None])[..., None] & (spelled >= 0)
    owner = jnp.broadcast_to(jnp.arange(labels.shape[1])[:, None], spelled.shape[1:])
    first = ((0, 0), (int(space_first), 0))  # a space, of the first label
    tokens, size, owner = jax.vmap(_compact, (0, 0, None, None))(
        jnp.pad(spelled.reshape(len(labels), -1), first, constant_values=merges.space),
        jnp.pad(real.reshape(len(labels), -1), first, constant_values=True),
        jnp.pad(owner.reshape(-1), first[1]),
        capacity,
    )
    space, place = tokens == merges.space, jnp.arange(capacity)
    last = jnp.max(jnp.where(space | (place >= size[:, None]), -1, place), axis=1)
    follows_space = jnp.pad(space[:, :-1], ((0, 0), (1, 0)), constant_values=not space_first)
    first_of_run = space & ~follows_space
    kept = (~space | first_of_run) & (place <= last[:, None])
    tokens, size, owner = jax.vmap(_compact, (0, 0, 0, None))(tokens, kept, owner, capacity)
    inside = place < size[:, None]
    word = jnp.cumsum((tokens == merges.space) & inside, axis=1)
    token_of = jnp.broadcast_to(place, tokens.shape)  # of each byte, its place among the tokens
    tokens, count, token_of = _merge_all(merges, tokens, size, token_of, word)
    mine = (token_of[:, None] == place[:most, None]) & inside[:, None]
    theirs = (owner[..., None] == jnp.arange(labels.shape[1])) & inside[..., None]
    parts = mine.astype(jnp.float32) @ theirs.astype(jnp.float32)
    return Retokenized(tokens[:, :most], jnp.minimum(count, most), parts)


def _compact(
    x: jax.Array, kept: jax.Array, owner: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Those of a row `x` that are `kept`, moved to its beginning; their number; their owners."""
    slot = jnp.where(kept, jnp.cumsum(kept) - 1, capacity)
    nothing = jnp.zeros(capacity, jnp.int32)
    return (
        nothing.at[slot].set(x, mode="drop"),
        jnp.minimum(jnp.sum(kept, dtype=jnp.int32), capacity),
        nothing.at[slot].set(owner, mode="drop"),
    )


def _merge_all(
    merges: Merges, tokens: jax.Array, count: jax.Array, token_of: jax.Array, word: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Merges until nothing is left to merge: in each word one pair at a time, the first by rank."""
    place = jnp.arange(tokens.shape[1])

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        tokens, count, token_of, word, _ = state
        after = jnp.roll(tokens, -1, axis=1)
        rank, merged = _look_up(merges, tokens, after)
        same_word = word == jnp.roll(word, -1, axis=1)
        rank = jnp.where((place + 1 < count[:, None]) & same_word, rank, _NONE)
        least = jax.vmap(lambda r, w: jnp.full_like(r, _NONE).at[w].min(r)[w])(rank, word)
        first = jnp.where((rank == least) & (rank < _NONE), place, _NONE)
        first = jax.vmap(lambda f, w: jnp.full_like(f, _NONE).at[w].min(f)[w])(first, word)
        joins = (rank < _NONE) & (place == first)
        gone = jnp.pad(joins[:, :-1], ((0, 0), (1, 0)))
        kept = ~gone & (place < count[:, None])
        slot = jnp.cumsum(kept, axis=1) - 1  # one that is gone shares that of its left neighbour
        token_of = jnp.take_along_axis(slot, token_of, axis=1)
        tokens, size, word = jax.vmap(_compact, (0, 0, 0, None))(
            jnp.where(joins, merged, tokens), kept, word, tokens.shape[1]
        )
        return tokens, size, token_of, word, jnp.any(joins)

    state = (tokens, count, token_of, word, jnp.array(True))
    tokens, count, token_of, _, _ = jax.lax.while_loop(lambda state: state[-1], step, state)
    return tokens, count, token_of


def _look_up(merges: Merges, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rank and token of the merge of each pair; `_NONE` and anything where there is none."""
    start, rights = jnp.asarray(merges.start), jnp.asarray(merges.right)
    low, high = start[left], start[left + 1]
    end = high
    for _ in range(int(max(merges.start[1:] - merges.start[:-1])).bit_length()):  # bisection
        middle = (low + high) // 2
        below = (low < high) & (rights[jnp.minimum(middle, len(merges.right) - 1)] < right)
        low, high = jnp.where(below, middle + 1, low), jnp.where(below, high, middle)
    at = jnp.minimum(low, len(merges.right) - 1)
    found = (low < end) & (rights[at] == right)
    return jnp.where(found, jnp.asarray(merges.rank)[at], _NONE), jnp.asarray(merges.merged)[at]
