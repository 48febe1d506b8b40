"""Kinds of tokens: what begins a word, what goes on with one, and marks."""

from __future__ import annotations

from mtp_jax.tokenizer.base import SPACES, Tokenizer

MARK, BEGINS, GOES_ON = "0", "1", "2"


def kinds_of(tokenizer: Tokenizer) -> str:
    """The kind of each token, a character each.

    A mark has neither letters nor digits. Pieces of bytes that are not ASCII count as letters, as
    they spell parts of characters.
    """
    return "".join(map(_kind, tokenizer.pieces))


def _kind(piece: str) -> str:
    if not any(c.isalnum() for c in piece.strip(SPACES)):
        return MARK
    return BEGINS if piece.startswith(tuple(SPACES)) else GOES_ON
