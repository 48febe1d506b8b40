"""The merge that the files of multilingual Whispers lack.

Token 256 + n of a Whisper is what merge n makes, so its vocabulary tells the merges. Copies of
``tokenizer.json`` lack the first, of a space and "t" (one has 49,999 merges for 50,000 tokens):
they cut " the" into two tokens where the model has learnt one, and so every word with that letter
in front. A prompt or a draft in these tokens is not what the model would write.
"""

from __future__ import annotations

import bisect
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


def with_lost_merges(model: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A byte-level BPE, with the merges that its vocabulary shows to be missing.

    A token that can be made of two others in several ways, or of none, stays without.
    """
    whole: dict[str, Any] = json.loads(model.to_str())
    bpe = whole["model"]
    if bpe.get("type") != "BPE":
        return model
    vocabulary: dict[str, int] = bpe["vocab"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in bpe["merges"]]
    made = [vocabulary[left + right] for left, right in merges]
    if made != sorted(made):  # ids do not tell the order of merges
        return model
    known = {*made, *(vocabulary.get(token["content"]) for token in whole["added_tokens"])}
    lost = [
        (token, pairs[0])
        for piece, token in vocabulary.items()
        if token not in known and len(pairs := _pairs(piece, vocabulary)) == 1
    ]
    if not lost:
        return model
    for token, pair in lost:
        at = bisect.bisect(made, token)
        made.insert(at, token)
        merges.insert(at, pair)
    bpe["merges"] = [list(pair) for pair in merges]
    whole_again: tokenizers.Tokenizer = type(model).from_str(json.dumps(whole))
    return whole_again


def _pairs(piece: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Older tokens that a token can be made of."""
    own = vocabulary[piece]
    splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    return [pair for pair in splits if all(vocabulary.get(part, own) < own for part in pair)]
