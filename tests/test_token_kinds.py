"""Kinds of tokens, of pieces as each kind of tokenizer spells them."""

from __future__ import annotations

import types

import pytest

from mtp_jax.config import Config
from mtp_jax.models.build import vocabulary_of
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.kinds import BEGINS, GOES_ON, MARK, kinds_of


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        (["Ġthe", "▁the", " the", "ĠI", "Ġ7", "Ġ'em"], BEGINS),
        (["the", "s", "7", "'s", "Ã¼", "Ķ"], GOES_ON),
        ([",", ".", "Ġ", "▁", "Ġ-", "!?", "</", "..."], MARK),
    ],
)
def test_a_piece_is_of_its_kind(pieces: list[str], kind: str) -> None:
    tokenizer = types.SimpleNamespace(pieces=pieces)
    assert kinds_of(tokenizer) == kind * len(pieces)  # type: ignore[arg-type]


def test_a_vocabulary_knows_the_kind_of_each_token(tmp_path) -> None:
    tokenizer = Tokenizer.train(["a b c, d."] * 20, tmp_path / "tokenizer.model", 11)
    vocabulary = vocabulary_of(Config(), tokenizer)
    assert len(vocabulary.kinds) == vocabulary.size == tokenizer.vocab_size
    assert vocabulary.kinds[tokenizer.pieces.index(",")] == MARK
