"""Where the drafts that head 1 verifies come from: later heads, or a text that is read off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtp_jax.decoding.edit_distance import (
    DraftText,
    advance_edit_distance,
    draft_continuation,
    initial_distances,
)
from mtp_jax.decoding.interface import DecoderFunctions


class DraftsError(ValueError):
    """CTC reads in other tokens than the decoder's."""

    def __init__(self) -> None:
        super().__init__(
            "verify_ctc and prefix_beam_ctc draft what CTC reads, and this model's CTC has labels"
            " of its own: take verify or prefix_beam"
        )


class DraftSource(NamedTuple):
    """Where drafts come from.

    Attributes:
        width: S, tokens fed a call.
        start: state before the first token.
        draft: (state, hidden [B, D] at the last accepted position, int32[B, S] tokens that head 1
            predicts, of which the first int32[B] are accepted) -> (int32[B, S], the last accepted
            token and the drafts behind it; state).
    """

    width: int
    start: Any
    draft: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def head_drafts(model: DecoderFunctions) -> DraftSource:
    """What heads 2..M say."""

    def draft(
        drafter_state: Any, hidden: jax.Array, predicted: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Any]:
        first = _last(predicted, count)
        drafts = model.draft(hidden, first[:, 0])
        return jnp.concatenate([first, drafts.tokens], axis=1), drafter_state

    return DraftSource(model.heads, (), draft)


def text_drafts(
    text: DraftText, width: int, eos: int, drafter_state: jax.Array | None = None
) -> DraftSource:
    """Drafts are what comes next in `text`.

    Args:
        text: CTC hypotheses, or other texts.
        width: S.
        eos: drafted behind the end of a text.
        drafter_state: int32[B, R + 1] edit distances of an output that is not empty.
    """

    def draft(
        drafter_state: jax.Array, hidden: jax.Array, predicted: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del hidden
        drafter_state = advance_edit_distance(text, drafter_state, predicted, count)
        drafts = draft_continuation(text, drafter_state, width - 1, eos)
        return jnp.concatenate([_last(predicted, count), drafts], axis=1), drafter_state

    return DraftSource(
        width, initial_distances(text) if drafter_state is None else drafter_state, draft
    )


def _last(predicted: jax.Array, count: jax.Array) -> jax.Array:
    """int32[B, 1]."""
    return jnp.take_along_axis(predicted, count[:, None] - 1, axis=1)


def draft_source(model: DecoderFunctions, ctc_width: int) -> DraftSource:
    """Drafts of the heads, or, where `ctc_width` is above 0, as wide ones of what CTC reads.

    Raises:
        DraftsError: CTC reads nothing in the decoder's tokens.
    """
    if not ctc_width:
        return head_drafts(model)
    if model.ctc_hypothesis is None:
        raise DraftsError
    return text_drafts(model.ctc_hypothesis, ctc_width, model.eos)
