"""tekken.json: ids as mistral-common gives them, and what is refused."""

from __future__ import annotations

import base64
import json

import pytest

from mtp_jax.tokenizer import Tokenizer, TokenizerError
from tests.speech_llms import GOLDEN, expected, golden_runner


@pytest.fixture(scope="module")
def tokenizer():
    return golden_runner("voxtral").tokenizer


def test_ids_equal_those_of_mistral_common(tokenizer):
    texts, ids = (json.loads(str(expected("voxtral")[name])) for name in ("texts", "ids"))
    assert [tokenizer.encode(text) for text in texts] == ids
    for text, own in zip(texts, ids, strict=True):
        decoded = tokenizer.decode(own)
        assert decoded in (text, text.lstrip(), "")  # "lang:en" is no text


def test_special_tokens_are_neither_made_of_a_text_nor_shown(tokenizer):
    assert all(token >= 40 for token in tokenizer.encode("[INST]the</s>"))
    assert tokenizer.decode([1, 3, *tokenizer.encode("the"), 2]) == "the"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (2, 2, 11)
    assert (tokenizer.pieces[24], tokenizer.vocab_size) == ("[AUDIO]", 316)


def test_a_thousand_special_tokens_as_in_released_files(tmp_path):
    """Those that a file does not name have their place all the same."""
    values = json.loads((GOLDEN / "voxtral" / "tekken.json").read_text())
    values["config"] |= {"default_num_special_tokens": 1000, "default_vocab_size": 1276}
    for name in ("tekken.json", "config.json"):
        file = {"tekken.json": values, "config.json": {"model_type": "voxtral", "eos_token_id": 2}}
        (tmp_path / name).write_text(json.dumps(file[name]))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 1276
    assert tokenizer.pieces[999] == "<SPECIAL_999>"
    (the,) = tokenizer.encode("the")
    assert the == 1000 + values["vocab"].index(
        next(t for t in values["vocab"] if base64.b64decode(t["token_bytes"]) == b"the")
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["config"].pop("pattern"),
        lambda v: v["config"].update(default_vocab_size=10**9),
        lambda v: v["config"].update(default_vocab_size="300"),
        lambda v: v["vocab"].pop(),
        lambda v: v["vocab"][3].update(rank=2),
        lambda v: v["vocab"][3].update(token_bytes="!"),
        lambda v: v["vocab"][3].update(rank=-1),
        lambda v: v["special_tokens"][3].update(token_str="</s>"),
        lambda v: v.update(vocab=None) or v["config"].update(token_bytes=1),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(change, tmp_path):
    values = json.loads((GOLDEN / "voxtral" / "tekken.json").read_text())
    change(values)
    values["token_bytes"] = 0  # it is taken for one
    (tmp_path / "tekken.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=r"is no tekken\.json .*: download it again"):
        Tokenizer.load(tmp_path)
