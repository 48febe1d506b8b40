"""Tokens before the texts of a batch, in one of few shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtp_jax.tokenizer.whisper_tokens import NO_TOKEN

_STEP = 64  # tokens by which programs differ


def padded_starts(begin: Sequence[tuple[int, ...]], usual: tuple[int, ...]) -> np.ndarray:
    """int32[B, P]: the start tokens of each row at the right, behind `NO_TOKEN`.

    >>> padded_starts([(1, 2), (3, 4)], usual=(1, 2)).tolist()
    [[1, 2], [3, 4]]

    Args:
        begin: of each row.
        usual: what most texts begin with. P is its length, or as many steps more as are needed.
    """
    longer = max(map(len, begin)) - len(usual)
    start = np.full((len(begin), len(usual) + -(-longer // _STEP) * _STEP), NO_TOKEN, np.int32)
    for row, tokens in enumerate(begin):
        start[row, start.shape[1] - len(tokens) :] = tokens
    return start
