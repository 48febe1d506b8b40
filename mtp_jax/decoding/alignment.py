"""Drafts read off a text: align it with the output so far, and draft what follows.

The text is a CTC hypothesis, that of another recogniser, or another hypothesis of the decoder. A
decoder mostly agrees with it, so that whole phrases are accepted. This takes no heads and changes
no output. (That a decoder verifies the CTC transcript is from Saon et al., arXiv 2603.11243, who
decode token by token behind the first difference.)

The alignment is Needleman and Wunsch's (1970), with a memory that fades: each prefix of the text
has a score, which counts matches and errors of the best alignment of the output with it, those of
earlier tokens less and less. So a passage in which the two have nothing in common is soon
forgotten, once they agree again.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# In whole numbers, so that equal scores are equal on every device.
MATCH = 1024
ERROR = -1024  # a token is put in, left out, or replaced by one of its kind


class DraftText(NamedTuple):
    """Texts that drafts are read off.

    Attributes:
        tokens: int32[B, R], 0 behind the last.
        length: int32[B].
    """

    tokens: jax.Array
    length: jax.Array


class Aligner(NamedTuple):
    """Aligns texts with an output that grows.

    The alignment is int32[B, R + 1]: scores of the first 0, 1, ..., R tokens of each text.

    Attributes:
        text: R tokens per row.
        kinds: int8[V], the kind of each token (`mtp_jax.tokenizer.kinds`). Only a token of the same
            kind stands in the place of another: a comma that the text does not have was put in.
            Without kinds any may.
    """

    text: DraftText
    kinds: jax.Array | None = None

    def start(self) -> jax.Array:
        """Of an empty output."""
        rows, capacity = self.text.tokens.shape
        return jnp.broadcast_to(ERROR * jnp.arange(capacity + 1), (rows, capacity + 1))

    def advance(self, scores: jax.Array, output: jax.Array, count: jax.Array) -> jax.Array:
        """Scores of a longer output.

        Args:
            scores: of the output so far.
            output: int32[B, S], of which the first int32[B] `count` are added.
        """
        skipped = ERROR * jnp.arange(scores.shape[1])

        def add(row: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            value, real = token
            faded = 4 * row // 5
            longer = (faded + ERROR).at[:, 1:].max(faded[:, :-1] + self._stands_for(value))
            # Tokens of the text may be skipped: the greatest of longer[i] + (j - i) ERROR.
            longer = jax.lax.cummax(longer - skipped, axis=1) + skipped
            return jnp.where(real[:, None], longer, row), None

        real = jnp.arange(output.shape[1])[:, None] < count
        return jax.lax.scan(add, scores, (output.T, real))[0]

    def _stands_for(self, value: jax.Array) -> jax.Array:
        """int32[B, R], the score of int32[B] `value` in the place of each token."""
        tokens, value = self.text.tokens, value[:, None]
        replaced = jnp.int32(ERROR)
        if self.kinds is not None:
            same_kind = self.kinds[tokens] == self.kinds[value]
            replaced = jnp.where(same_kind, ERROR, 2 * ERROR)
        return jnp.where(tokens == value, MATCH, replaced)

    def end(self, scores: jax.Array) -> jax.Array:
        """int32[B], the length of the best prefix; the longest of equals."""
        place = jnp.arange(scores.shape[1])
        least = jnp.iinfo(jnp.int32).min
        within = jnp.where(place <= self.text.length[:, None], scores, least)
        best = jnp.max(within, axis=1, keepdims=True)
        return jnp.max(jnp.where(within == best, place, 0), axis=1)

    def agrees(self, scores: jax.Array, last: jax.Array) -> jax.Array:
        """bool[B]: whether int32[B] `last`, which ends the output, also ends the best prefix."""
        end = self.end(scores)[:, None]
        expected = jnp.take_along_axis(self.text.tokens, jnp.maximum(end - 1, 0), axis=1)[:, 0]
        return (end[:, 0] > 0) & (expected == last)

    def continuation(self, scores: jax.Array, width: int, eos: int) -> jax.Array:
        """int32[B, width]: the tokens of the text behind the best prefix, then EOS."""
        tokens, length = self.text
        wanted = self.end(scores)[:, None] + jnp.arange(width)
        drafts = jnp.take_along_axis(tokens, jnp.minimum(wanted, tokens.shape[1] - 1), axis=1)
        return jnp.where(wanted < length[:, None], drafts, eos)
