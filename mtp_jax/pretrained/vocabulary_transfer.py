"""A trained model for another tokenizer: for a language with letters of its own, say.

What stands for a token in it (its embedding, its row of the un-embedding and of CTC) goes over to
the tokens of the new one: a piece that both have keeps its own, another begins as the mean of the
pieces that spell it, and one that nothing spells as the mean of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mtp_jax.distributed.multihost import to_host
from mtp_jax.tokenizer import Tokenizer

# The axis of the tokens in what has one; CTC's blank stands behind the last.
TEXT = {"decoder/embedding": 0, "decoder/lm_head": 0}
INDEPENDENT = {"heads/kernel": 2}
CTC = {"ctc/kernel": 1, "ctc/bias": 0}
LABELS = {"label_embedding": 0}


def for_tokenizer(
    params: dict[str, jax.Array], theirs: Tokenizer, ours: Tokenizer, independent: bool
) -> dict[str, np.ndarray]:
    """Those of `params` that say something of tokens, for the tokens of another tokenizer.

    Args:
        params: of a model, by path.
        theirs: its tokenizer; `ours`: the other one.
        independent: whether its heads have un-embeddings of their own.
    """
    found: dict[str, np.ndarray] = {}
    if theirs.pieces != ours.pieces:
        own = shares(theirs.pieces, ours.pieces)
        found |= _mixed(params, TEXT | (INDEPENDENT if independent else {}), own)
    if theirs.ctc.pieces != ours.ctc.pieces:
        own = shares(theirs.ctc.pieces, ours.ctc.pieces)
        found |= _mixed(params, LABELS, own) | _mixed(params, CTC, _with_blank(own))
    return found


def shares(theirs: Sequence[str], ours: Sequence[str]) -> np.ndarray:
    """float32[V', V]: what each of V' pieces begins with of V others; the rows add up to 1."""
    known = {piece: i for i, piece in enumerate(theirs)}
    found = np.zeros((len(ours), len(theirs)), np.float32)
    for row, piece in zip(found, ours, strict=True):
        spelled = _spelled(piece, known) or list(known.values())
        np.add.at(row, spelled, 1 / len(spelled))
    return found


def _spelled(piece: str, known: dict[str, int]) -> list[int]:
    """The known pieces that `piece` is made of, the longest first; unknown letters are left out."""
    found = []
    while piece:
        length = next((n for n in range(len(piece), 0, -1) if piece[:n] in known), 0)
        if length:
            found.append(known[piece[:length]])
        piece = piece[length or 1 :]
    return found


def _with_blank(own: np.ndarray) -> np.ndarray:
    whole = np.pad(own, ((0, 1), (0, 1)))
    whole[-1, -1] = 1
    return whole


def _mixed(
    params: dict[str, jax.Array], axes: dict[str, int], own: np.ndarray
) -> dict[str, np.ndarray]:
    found = {}
    for path, axis in axes.items():
        if path in params:
            x: Any = np.moveaxis(np.asarray(to_host(params[path])), axis, 0)
            found[path] = np.moveaxis(np.tensordot(own, x, 1).astype(x.dtype), 0, axis)
    return found
