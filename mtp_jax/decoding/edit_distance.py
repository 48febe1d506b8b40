"""Drafts read off a text, CTC's or a hypothesis: aligned with the text so far, what comes next.

The decoder of a good encoder mostly says what CTC says, so that whole phrases pass verification. It
takes no heads, and changes no output. (To have the decoder verify CTC's transcript is from Saon
et al., arXiv 2603.11243, who go on token by token behind the first difference.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class DraftText(NamedTuple):
    """Texts that drafts are read off: what CTC reads, or hypotheses.

    Attributes:
        tokens: int32[B, R], in the decoder's tokens; 0 behind the last.
        length: int32[B], how many there are.
    """

    tokens: jax.Array
    length: jax.Array


def initial_distances(reading: DraftText) -> jax.Array:
    """int32[B, R + 1] distances of no text: see `follow`."""
    rows, capacity = reading.tokens.shape
    return jnp.broadcast_to(jnp.arange(capacity + 1), (rows, capacity + 1))


def advance_edit_distance(
    reading: DraftText, distances: jax.Array, text: jax.Array, count: jax.Array
) -> jax.Array:
    """Edit distances of a longer text.

    Args:
        ctc_hypothesis: what CTC reads, in the decoder's tokens.
        distances: int32[B, R + 1], of the text so far from the first 0, 1, ..., R tokens read.
        text: int32[B, S], of which the first int32[B] `count` follow it.

    Returns:
        The distances of the text with these (Levenshtein, 1966; one row of his table a token).
    """
    place = jnp.arange(distances.shape[1])

    def add(row: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        predicted, real = token
        replaced = row[:, :-1] + (reading.tokens != predicted[:, None])
        longer = (row + 1).at[:, 1:].min(replaced)
        # Leaving out tokens read: the least of longer[i] + j - i over i <= j.
        longer = jax.lax.cummin(longer - place, axis=1) + place
        return jnp.where(real[:, None], longer, row), None

    real = jnp.arange(text.shape[1])[:, None] < count
    return jax.lax.scan(add, distances, (text.T, real))[0]


def draft_continuation(reading: DraftText, distances: jax.Array, width: int, eos: int) -> jax.Array:
    """int32[B, width]: what CTC reads behind the text so far, then EOS.

    The text ends where the reading is nearest to it; of several such places, at the last.
    """
    tokens, length = reading
    place = jnp.arange(distances.shape[1])
    known = jnp.where(place <= length[:, None], distances, jnp.iinfo(jnp.int32).max)
    best = jnp.min(known, axis=1, keepdims=True)
    end = jnp.max(jnp.where(known == best, place, 0), axis=1)
    wanted = end[:, None] + jnp.arange(width)
    drafts = jnp.take_along_axis(tokens, jnp.minimum(wanted, tokens.shape[1] - 1), axis=1)
    return jnp.where(wanted < length[:, None], drafts, eos)
