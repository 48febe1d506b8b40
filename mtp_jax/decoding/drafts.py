"""Sources of the drafts that head 1 verifies: the later heads, or a text."""

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

# Below it a draft costs more time than it is likely to save: docs/whisper.md has the measurement.
MIN_PROBABILITY = 0.2


class DraftsError(ValueError):
    """The model has no CTC hypothesis in the decoder's tokens."""

    def __init__(self) -> None:
        super().__init__(
            "verify_ctc and prefix_beam_ctc draft by a CTC head whose text is made into the"
            " decoder's tokens, and this model has none (ctc needs a CTC head of any kind): take"
            " verify or prefix_beam"
        )


class DraftSource(NamedTuple):
    """A source of drafts.

    Attributes:
        width: S, the most tokens that a call is fed.
        start: state before the first token.
        draft: (state, hidden [B, D] at the last accepted position, int32[B, S] tokens that head 1
            predicts, of which the first int32[B] are accepted) -> (int32[B, S], the last accepted
            token and the drafts behind it; int32[B], how many of these are to be fed; state).
    """

    width: int
    start: Any
    draft: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Any]]


def head_drafts(model: DecoderFunctions, min_probability: float) -> DraftSource:
    """Drafts of heads 2..M, as `Verify` says."""

    def draft(
        state: Any, hidden: jax.Array, predicted: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array, Any]:
        last = _last(predicted, count)
        drafts = model.draft(hidden, last[:, 0], min_probability)
        return jnp.concatenate([last, drafts.tokens], axis=1), 1 + drafts.drafted, state

    return DraftSource(model.heads, (), draft)


def text_drafts(
    text: DraftText, width: int, eos: int, distances: jax.Array | None = None
) -> DraftSource:
    """Drafts are what follows in `text`.

    Args:
        text: CTC hypotheses, or other texts.
        width: S.
        eos: drafted behind the end of a text.
        distances: int32[B, R + 1] edit distances of the output so far; those of an empty one by
            default.
    """

    def draft(
        state: jax.Array, hidden: jax.Array, predicted: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del hidden
        state = advance_edit_distance(text, state, predicted, count)
        drafts = draft_continuation(text, state, width - 1, eos)
        block = jnp.concatenate([_last(predicted, count), drafts], axis=1)
        return block, jnp.full_like(count, width), state

    return DraftSource(width, initial_distances(text) if distances is None else distances, draft)


def draft_source(
    model: DecoderFunctions, ctc_width: int, min_probability: float = MIN_PROBABILITY
) -> DraftSource:
    """Drafts of the heads or, where `ctc_width` (S) is above 0, of the CTC hypothesis.

    Raises:
        DraftsError: there is no CTC hypothesis in the decoder's tokens.
    """
    if not ctc_width:
        return head_drafts(model, min_probability)
    if model.ctc_hypothesis is None:
        raise DraftsError
    return text_drafts(model.ctc_hypothesis, ctc_width, model.eos)


def _last(predicted: jax.Array, count: jax.Array) -> jax.Array:
    """int32[B, 1], the last accepted token."""
    return jnp.take_along_axis(predicted, count[:, None] - 1, axis=1)
