"""The merges of a byte-level BPE, and CTC labels in the tokens that it begins with."""

from __future__ import annotations

import itertools

import numpy as np

from mtp_jax.nn.retokenizing import Merges
from mtp_jax.tokenizer import Tokenizer


def merges_of(tokenizer: Tokenizer) -> Merges | None:
    """The merges of a tokenizer whose CTC labels are not its tokens.

    Returns:
        None if it is no byte-level BPE, or a label holds a byte for which it has no token.
    """
    pairs, first = tokenizer.merges(), tokenizer.byte_tokens(" ")
    if pairs is None or first is None:
        return None
    labels = [tokenizer.byte_tokens(text) for text in _texts(tokenizer.ctc)]
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
