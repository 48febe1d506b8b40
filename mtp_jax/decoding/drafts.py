"""Sources of the drafts that head 1 verifies: the later heads, a text, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtp_jax.decoding.alignment import Aligner
from mtp_jax.decoding.interface import DecoderFunctions

# Below it a draft costs more time than it is likely to save: docs/whisper.md has the measurement.
MIN_PROBABILITY = 0.2


class DraftsError(ValueError):
    """There is no text to draft by in the decoder's tokens: of a CTC head, or of another model."""

    def __init__(self) -> None:
        super().__init__(
            "verify_ctc and prefix_beam_ctc draft by a CTC head whose text is made into the"
            " decoder's tokens, and this model has none (ctc needs a CTC head of any kind): take"
            " verify or prefix_beam, or name a --draft_model that drafts in its place"
        )


class DraftSource(NamedTuple):
    """A source of drafts.

    Attributes:
        width: S, the most tokens that a call is fed.
        start: state of an empty text.
        advance: (state, int32[B, S'] tokens, of which the first int32[B] are accepted) -> state of
            the longer text.
        draft: (state, hidden [B, D] that predicted the last token, int32[B] the last token, bool[B]
            which texts go on) -> (int32[B, S - 1] drafts of what follows; int32[B], how many of
            these there are).
        reads_hidden: whether drafts depend on `hidden`; otherwise it is None.
    """

    width: int
    start: Any
    advance: Callable[[Any, jax.Array, jax.Array], Any]
    draft: Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    reads_hidden: bool


def head_drafts(model: DecoderFunctions, min_probability: float) -> DraftSource:
    """Drafts of heads 2..M, as `Verify` says."""

    def draft(
        state: Any, hidden: jax.Array, last: jax.Array, running: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del state
        drafts = model.draft(hidden, last, running, min_probability)
        return drafts.tokens, drafts.drafted

    return DraftSource(model.heads, (), lambda state, tokens, count: state, draft, True)


def text_drafts(
    aligner: Aligner, width: int, eos: int, scores: jax.Array | None = None
) -> DraftSource:
    """Drafts are what follows in a text.

    Args:
        aligner: of CTC hypotheses, or other texts.
        width: S.
        eos: drafted behind the end of a text.
        scores: int32[B, R + 1] of the output so far; those of an empty one by default.
    """

    def draft(
        state: jax.Array, hidden: Any, last: jax.Array, running: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del hidden, running
        return aligner.continuation(state, width - 1, eos), jnp.full_like(last, width - 1)

    start = aligner.start() if scores is None else scores
    return DraftSource(width, start, aligner.advance, draft, False)


def joint_drafts(
    model: DecoderFunctions, aligner: Aligner, width: int, min_probability: float
) -> DraftSource:
    """Drafts are what follows in a text; behind a disagreement the heads draft first.

    A text says nothing of the token that it did not expect: whether that was put in or put in the
    place of another. So where the last accepted token is not of the text, the heads draft as long
    as their drafts are likely to be all right. The text is aligned with these, and what follows
    them in it comes behind. Rows that agree with the text ask for no heads.

    Args:
        model: its heads.
        aligner: of CTC hypotheses, or other texts.
        width: S.
        min_probability: of all drafts of the heads being right.
    """

    def draft(
        state: jax.Array, hidden: jax.Array, last: jax.Array, running: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        wanted = running & ~aligner.agrees(state, last)
        heads = model.draft(hidden, last, wanted, min_probability)
        likely = jnp.cumprod(heads.probabilities, axis=1) >= min_probability
        own = jnp.minimum(jnp.sum(likely, axis=1, dtype=jnp.int32), heads.drafted)
        with_own = aligner.advance(state, heads.tokens, own)
        behind = aligner.continuation(with_own, width - 1, model.eos)
        place = jnp.arange(width - 1) - own[:, None]
        drafts = jnp.where(
            place < 0,
            jnp.pad(heads.tokens, ((0, 0), (0, width)))[:, : width - 1],
            jnp.take_along_axis(behind, jnp.maximum(place, 0), axis=1),
        )
        return drafts, jnp.full_like(last, width - 1)

    return DraftSource(width, aligner.start(), aligner.advance, draft, True)


def draft_source(
    model: DecoderFunctions,
    ctc_width: int,
    heads: bool = False,
    min_probability: float = MIN_PROBABILITY,
) -> DraftSource:
    """Drafts of the heads or, where `ctc_width` (S) is above 0, of the CTC hypothesis.

    With `heads` they are of both, as in `joint_drafts`.

    Raises:
        DraftsError: there is no CTC hypothesis in the decoder's tokens.
    """
    if not ctc_width:
        return head_drafts(model, min_probability)
    if model.ctc_hypothesis is None:
        raise DraftsError
    aligner = Aligner(model.ctc_hypothesis, model.token_kinds)
    if heads:
        return joint_drafts(model, aligner, ctc_width, min_probability)
    return text_drafts(aligner, ctc_width, model.eos)
