"""Where the drafts that head 1 verifies come from: later heads, or a text that is read off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtp_jax.decoding.edit_distance import Reading, follow, nothing_said, read_on
from mtp_jax.decoding.interface import Model


class DraftsError(ValueError):
    """CTC reads in other tokens than the decoder's."""

    def __init__(self) -> None:
        super().__init__(
            "verify_ctc and prefix_beam_ctc draft what CTC reads, and this model's CTC has labels"
            " of its own: take verify or prefix_beam"
        )


class Source(NamedTuple):
    """Where drafts come from.

    Attributes:
        width: S, tokens fed a call.
        start: what it knows of a text before its first token.
        draft: (known, hidden [B, D] at the last accepted position, int32[B, S] tokens that head 1
            says, of which the first int32[B] join the text) -> (int32[B, S], the last of these and
            the drafts behind it; known).
    """

    width: int
    start: Any
    draft: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def drafts_of_heads(model: Model) -> Source:
    """What heads 2..M say."""

    def draft(
        known: Any, hidden: jax.Array, said: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Any]:
        first = _last(said, count)
        drafts = model.draft(hidden, first[:, 0])
        return jnp.concatenate([first, drafts.tokens], axis=1), known

    return Source(model.heads, (), draft)


def drafts_of_reading(
    reading: Reading, width: int, eos: int, known: jax.Array | None = None
) -> Source:
    """What comes next in a `reading`; int32[B, R + 1] `known` of a text that is not empty."""

    def draft(
        known: jax.Array, hidden: jax.Array, said: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del hidden
        known = follow(reading, known, said, count)
        drafts = read_on(reading, known, width - 1, eos)
        return jnp.concatenate([_last(said, count), drafts], axis=1), known

    return Source(width, nothing_said(reading) if known is None else known, draft)


def _last(said: jax.Array, count: jax.Array) -> jax.Array:
    """int32[B, 1]."""
    return jnp.take_along_axis(said, count[:, None] - 1, axis=1)


def source_of(model: Model, ctc_width: int) -> Source:
    """Drafts of the heads, or, where `ctc_width` is above 0, as wide ones of what CTC reads.

    Raises:
        DraftsError: CTC reads nothing in the decoder's tokens.
    """
    if not ctc_width:
        return drafts_of_heads(model)
    if model.reading is None:
        raise DraftsError
    return drafts_of_reading(model.reading, ctc_width, model.eos)
