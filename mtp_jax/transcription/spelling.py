"""Which token belongs to which word, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.base import SPACES

_PARTIAL = "\ufffd"  # what a token that ends within a character decodes to


class Spelled(NamedTuple):
    """A text and its tokens.

    Attributes:
        words: of the text, which spaces part.
        added: what each token adds to the text.
        word: place of each token's word; -1 where there is none.
    """

    words: list[str]
    added: list[str]
    word: list[int]


def spell(tokenizer: Tokenizer, tokens: Sequence[int]) -> Spelled:
    """Words of `tokens`, which holds no EOS. A token across two words counts as the later's."""
    added, word, before = [], [], ""
    for i, token in enumerate(tokens):
        text = tokenizer.decode(tokens[: i + 1])
        whole = text.rstrip(_PARTIAL) if i + 1 < len(tokens) else text
        added.append(whole[len(before) :] if whole.startswith(before) else "")
        before = whole
        count = len(text.split())
        space = not tokenizer.pieces[token].strip(SPACES)  # of the word that follows it
        word.append(count if space and count else count - 1)
    words = before.split()
    return Spelled(words, added, [min(max(place, 0), len(words) - 1) for place in word])


def labels_of(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Labels that spell `words`, and the place of each one's word."""
    labels = tokenizer.encode(" ".join(words))
    spelled = spell(tokenizer, labels)
    if len(spelled.words) == len(words):
        return labels, spelled.word
    labels, places = [], []  # characters that it does not know came back as spaces or not at all
    for place, word in enumerate(words):
        own = tokenizer.encode(word)
        labels += own
        places += [place] * len(own)
    return labels, places
