"""The merges of a byte-level BPE, and CTC labels in the tokens that it begins with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from mtp_jax.tokenizer.base import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Merges:
    """How to get from what CTC reads to the tokens of an LLM.

    Two are equal if they hold the same numbers, so that a module may hold one.

    Attributes:
        start: int32[V + 1], where the pairs begin whose left token is each.
        right: int32[N], right token of each pair, rising within a left one.
        rank: int32[N], which pair is merged before which.
        merged: int32[N], the token that it becomes.
        spelled: int32[labels, P], the bytes that each CTC label stands for, as tokens; -1 behind
            the last.
        space: the token of a space.
    """

    start: np.ndarray
    right: np.ndarray
    rank: np.ndarray
    merged: np.ndarray
    spelled: np.ndarray
    space: int

    @functools.cached_property
    def _digest(self) -> bytes:
        arrays = (self.start, self.right, self.rank, self.merged, self.spelled)
        return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Merges) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def merges_of(tokenizer: Tokenizer, texts: Sequence[str] | None = None) -> Merges | None:
    """The merges of a tokenizer whose CTC labels are not its tokens.

    Args:
        tokenizer: of the decoder.
        texts: what each label adds to a text; by default that of `tokenizer.ctc`.

    Returns:
        None if it is no byte-level BPE, or a label holds a byte for which it has no token.
    """
    pairs, first = tokenizer.merges(), tokenizer.byte_tokens(" ")
    if pairs is None or first is None:
        return None
    texts = _texts(tokenizer.ctc) if texts is None else texts
    labels = [tokenizer.byte_tokens(text) for text in texts]
    if any(label is None for label in labels):
        return None
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][:2])
    left = np.array([pairs[i][0] for i in order], np.int32)
    columns = itertools.zip_longest(*labels, fillvalue=-1)  # type: ignore[arg-type]
    return Merges(
        start=np.searchsorted(left, np.arange(tokenizer.vocab_size + 1)).astype(np.int32),
        right=np.array([pairs[i][1] for i in order], np.int32),
        rank=np.array(order, np.int32),
        merged=np.array([pairs[i][2] for i in order], np.int32),
        spelled=np.array(list(columns), np.int32).reshape(-1, len(labels)).T,
        space=first[0],
    )


def merges_as_many(vocab_size: int, labels: int) -> Merges:
    """Merges that mean nothing, as many as those of a tokenizer of this size: enough to compile.

    Args:
        vocab_size: of a byte-level BPE; `labels`: of CTC.
    """
    count = max(1, vocab_size - 256)
    left = np.minimum(np.arange(count) // 4096, vocab_size - 1)
    right = np.arange(count, dtype=np.int32) % 4096
    return Merges(
        start=np.searchsorted(left, np.arange(vocab_size + 1)).astype(np.int32),
        right=right,
        rank=np.arange(count, dtype=np.int32),
        merged=np.arange(vocab_size - count, vocab_size, dtype=np.int32),
        spelled=np.ones((labels, 8), np.int32),
        space=0,
    )


def _texts(ctc: Tokenizer) -> list[str]:
    """What each label of a SentencePiece model adds to a text; nothing if it is special."""
    special = {ctc.bos, ctc.eos, ctc.pad}
    return [
        "" if i in special or piece == "<unk>" else piece.replace("▁", " ")
        for i, piece in enumerate(ctc.pieces)
    ]
