"""Drafts read off a text: align it with the output so far, and draft what follows.

The text is a CTC hypothesis or another hypothesis of the decoder. A decoder behind a good encoder
mostly agrees with its CTC hypothesis, so that whole phrases are accepted. This takes no heads and
changes no output. (That a decoder verifies the CTC transcript is from Saon et al., arXiv
2603.11243, who decode token by token behind the first difference.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class DraftText(NamedTuple):
    """Texts that drafts are read off.

    Attributes:
        tokens: int32[B, R], 0 behind the last.
        length: int32[B].
    """

    tokens: jax.Array
    length: jax.Array


def initial_distances(text: DraftText) -> jax.Array:
    """int32[B, R + 1] distances of an empty output: see `advance_edit_distance`."""
    rows, capacity = text.tokens.shape
    return jnp.broadcast_to(jnp.arange(capacity + 1), (rows, capacity + 1))


def advance_edit_distance(
    text: DraftText, distances: jax.Array, output: jax.Array, count: jax.Array
) -> jax.Array:
    """Edit distances of a longer output.

    Args:
        text: R tokens per row.
        distances: int32[B, R + 1], of the output so far from the first 0, 1, ..., R tokens of
            `text`.
        output: int32[B, S], of which the first int32[B] `count` are added.

    Returns:
        The distances of the longer output (Levenshtein, 1966; one row of his table per token).
    """
    place = jnp.arange(distances.shape[1])

    def add(row: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        predicted, real = token
        replaced = row[:, :-1] + (text.tokens != predicted[:, None])
        longer = (row + 1).at[:, 1:].min(replaced)
        # Tokens of the text may be skipped: the least of longer[i] + j - i over i <= j.
        longer = jax.lax.cummin(longer - place, axis=1) + place
        return jnp.where(real[:, None], longer, row), None

    real = jnp.arange(output.shape[1])[:, None] < count
    return jax.lax.scan(add, distances, (output.T, real))[0]


def nearest_prefix(text: DraftText, distances: jax.Array) -> jax.Array:
    """int32[B], the length of the prefix of `text` nearest to the output; the longest of equals."""
    place = jnp.arange(distances.shape[1])
    within = jnp.where(place <= text.length[:, None], distances, jnp.iinfo(jnp.int32).max)
    least = jnp.min(within, axis=1, keepdims=True)
    return jnp.max(jnp.where(within == least, place, 0), axis=1)


def agrees(text: DraftText, distances: jax.Array, last: jax.Array) -> jax.Array:
    """bool[B]: whether int32[B] `last`, which ends the output, also ends the nearest prefix."""
    end = nearest_prefix(text, distances)[:, None]
    expected = jnp.take_along_axis(text.tokens, jnp.maximum(end - 1, 0), axis=1)[:, 0]
    return (end[:, 0] > 0) & (expected == last)


def draft_continuation(text: DraftText, distances: jax.Array, width: int, eos: int) -> jax.Array:
    """int32[B, width]: the tokens of `text` behind the output so far, then EOS.

    The output ends where the nearest prefix of the text does.
    """
    tokens, length = text
    wanted = nearest_prefix(text, distances)[:, None] + jnp.arange(width)
    drafts = jnp.take_along_axis(tokens, jnp.minimum(wanted, tokens.shape[1] - 1), axis=1)
    return jnp.where(wanted < length[:, None], drafts, eos)
