"""Tokenizers of pretrained LLaMAs: tokenizer.json and GGUF, on tiny ones that are made here."""

import io
import json

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Config, Pretrained
from mtp_jax.config import Tokenizer as TokenizerConfig
from mtp_jax.data import Source
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.gguf import LLAMA_3, LLAMA_3_NAMES, PRE_TOKENIZERS
from mtp_jax.training.run_tokenizer import open_tokenizer

TEXTS = [
    *("turn on the lamp", "turn off the radio at seven", "the number is nine five two"),
    *("in 1984 it's 25 percent", "Don't SHOUT, it'll be 7:30", "is it café or cafe\n\nyes"),
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# The pre-tokenizers as the models' tokenizer.json have them.
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS = {
    "gpt-2": GPT_2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(pre="smollm", special=SPECIAL):
    model = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    model.pre_tokenizer = SPLITS[pre]
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    model.add_tokens([AddedToken("[noise]", normalized=False)])
    return model


def write_gguf(path, model, kind="gpt2", **fields):
    """A GGUF file with the vocabulary of `model`, as llama.cpp's converter writes it."""
    content = json.loads(model.to_str())
    added = {token["id"]: 3 if token["special"] else 4 for token in content["added_tokens"]}
    size = model.get_vocab_size()
    defaults = {
        "pre": "smollm",
        "tokens": [model.id_to_token(i) for i in range(size)],
        "merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "token_type": [added.get(i, 1) for i in range(size)],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return write_fields(path, kind, **defaults | fields)


def write_fields(path, kind, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    if kind:
        writer.add_tokenizer_model(kind)
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_json(folder, model, **configs):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(model.to_str())
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tokenizer of each way to split: from JSON, and from GGUF."""
    folder = tmp_path_factory.mktemp("tokenizers")
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    pairs = {}
    for pre in SPLITS:
        model = byte_level(pre)
        json_folder = write_json(folder / pre, model, tokenizer_config=names)
        gguf_file = write_gguf(folder / f"{pre}.gguf", model, pre=pre)
        pairs[pre] = Tokenizer.load(json_folder), Tokenizer.load(gguf_file)
    return pairs


@pytest.fixture(scope="module")
def tokenizer(pairs):
    return pairs["smollm"][0]


def test_the_names_of_all_splits():
    assert set(PRE_TOKENIZERS) == {*SPLITS, *LLAMA_3_NAMES, "default"}


@pytest.mark.parametrize("pre", SPLITS)
def test_decode_undoes_encode(pairs, pre):
    for tokenizer in pairs[pre]:
        for text in [*TEXTS, "a lamp that no one wrote", "日本語 ½", "[noise] turn on"]:
            assert tokenizer.decode(tokenizer.encode(text)) == text


WORDS = st.sampled_from(["turn", "it's", "IT'S", "12345", "٣٤٥", "½", "\n", "  ", " ", *SPECIAL])


@settings(deadline=None)
@given(st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=8).map("".join))
def test_gguf_gives_what_json_gives_and_any_text_survives(pairs, text):
    for tokenizer, twin in pairs.values():
        ids = tokenizer.encode(text)
        assert twin.encode(text) == ids
        assert not {0, 1, 2} & set(ids)
        assert tokenizer.decode(ids) == twin.decode(ids) == text.lstrip(" ")


def test_numbers_are_split_as_each_model_does(pairs):
    words = {
        pre: [tokenizer.pieces[i] for i in tokenizer.encode("in 1984")]
        for pre, (tokenizer, _) in pairs.items()
    }
    assert words["smollm"] == ["in", "Ġ", "1", "9", "8", "4"]
    assert words["gpt-2"] == ["in", "Ġ1984"]
    assert words["llama-bpe"] == ["in", "Ġ", "198", "4"]


def test_special_tokens(tokenizer):
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 2)
    assert tokenizer.vocab_size == len(tokenizer.pieces)
    assert tokenizer.pieces[-1] == "[noise]" and tokenizer.pieces[:3] == SPECIAL
    ids = tokenizer.encode(TEXTS[0])
    assert tokenizer.decode([1, *ids, 2, 0]) == TEXTS[0]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("[noise]") == [tokenizer.vocab_size - 1]
    assert tokenizer.decode(tokenizer.encode(" turn on")) == "turn on"


@pytest.mark.parametrize("token", [-1, 100_000])
def test_a_token_outside_the_vocabulary(tokenizer, token):
    with pytest.raises(TokenizerError, match=f"token {token} is outside the vocabulary of"):
        tokenizer.decode([token])


@pytest.mark.parametrize("format", [0, 1], ids=["json", "gguf"])
def test_a_saved_tokenizer_is_the_same(pairs, tmp_path, format):
    first = pairs["smollm"][format]
    first.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    again = Tokenizer.load(tmp_path)
    again.save(tmp_path / "new" / "mine.json")
    third = Tokenizer.load(tmp_path / "new" / "mine.json")
    for other in (again, third):
        assert (other.bos, other.eos, other.pad) == (first.bos, first.eos, first.pad)
        assert other.pieces == first.pieces
        assert [other.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]


def test_json_comes_before_sentencepiece_comes_before_gguf(tmp_path):
    write_gguf(tmp_path / "a.gguf", byte_level())
    assert Tokenizer.load(tmp_path).file_name == "tokenizer.json"
    Tokenizer.train(TEXTS, tmp_path, 50)
    assert Tokenizer.load(tmp_path).file_name == "tokenizer.model"
    write_json(tmp_path, byte_level())
    assert Tokenizer.load(tmp_path).file_name == "tokenizer.json"


@pytest.mark.parametrize(
    ("configs", "ids"),
    [
        ({}, (0, 0, 0)),  # the names alone: GPT-2's
        ({"tokenizer_config": {"eos_token": "<|im_end|>", "pad_token": None}}, (0, 2, 2)),
        ({"config": {"eos_token_id": [2, 0], "bos_token_id": 1, "pad_token_id": -1}}, (1, 2, 2)),
        ({"generation_config": {"eos_token_id": 2, "pad_token_id": 0}}, (0, 2, 0)),
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>"},
                "config": {"eos_token_id": 0, "bos_token_id": 1},
                "generation_config": {"bos_token_id": 0, "pad_token_id": 1},
            },
            (1, 2, 1),
        ),
        ({"config": {"eos_token_id": 50}}, (0, 50, 50)),  # not an added token
    ],
)
def test_where_special_tokens_are_named(tmp_path, configs, ids):
    tokenizer = Tokenizer.load(write_json(tmp_path, byte_level(), **configs))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == ids
    assert tokenizer.decode([*tokenizer.encode("turn on"), tokenizer.eos]) == "turn on"
    assert tokenizer.eos not in tokenizer.encode("".join(tokenizer.pieces))


def test_names_of_llamas(tmp_path):
    for bos, eos in [("<s>", "</s>"), ("<|begin_of_text|>", "<|end_of_text|>")]:
        tokenizer = Tokenizer.load(write_json(tmp_path, byte_level(special=["[x]", bos, eos])))
        assert (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_a_unigram_model_cannot_end_a_text_either(tmp_path):
    pieces = ["<unk>", "</s>", "▁", "a", "<", "/", "s", ">"]
    model = tokenizers.Tokenizer(models.Unigram([(p, -1.0) for p in pieces], unk_id=0))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    model.add_special_tokens(["</s>", "<unk>"])
    tokenizer = Tokenizer.load(write_json(tmp_path, model))
    assert tokenizer.decode(tokenizer.encode("a as")) == "a as"
    assert 1 not in tokenizer.encode("a</s>a")
    assert 0 in tokenizer.encode("b")  # what is unknown stays so


def test_a_tokenizer_that_cuts_and_pads_does_neither(tmp_path):
    model = byte_level()
    model.enable_truncation(2)
    model.enable_padding(length=64)
    tokenizer = Tokenizer.load(write_json(tmp_path, model))
    assert tokenizer.decode(tokenizer.encode(TEXTS[1])) == TEXTS[1]
    assert tokenizer.pad not in tokenizer.encode(TEXTS[1])


def refusal(path):
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"a": "\xff"}', b"{" * 100_000, b'{"model": {"type": "BPE"}}'],
    ids=["empty", "object", "list", "not UTF-8", "nested", "foreign"],
)
def test_a_file_that_is_no_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "is not a tokenizer.json" in refusal(tmp_path / "tokenizer.json")


def test_a_panic_of_the_package_is_a_sentence_too(tmp_path):
    content = json.loads(byte_level().to_str())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "is not a tokenizer.json" in refusal(tmp_path / "tokenizer.json")


def test_truncated_files(tmp_path):
    whole = byte_level().to_str().encode()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    assert "is not a tokenizer.json" in refusal(tmp_path / "tokenizer.json")
    file = write_gguf(tmp_path / "a.gguf", byte_level())
    whole = file.read_bytes()
    for size in (4, 20, 1000, len(whole) // 2, len(whole) - 8):
        file.write_bytes(whole[:size])
        assert "damaged" in refusal(file)


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ({"tokenizer_config": {"eos_token": "</end>"}}, "no token '</end>', the eos_token of"),
        ({"tokenizer_config": {"eos_token": 7}}, "no token 7, the eos_token of"),
        ({"config": {"eos_token_id": 99_999}}, "no token 99999, which is to be its BOS|EOS token"),
        ({"config": [2]}, "config.json, which cannot be read"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, configs, said):
    folder = write_json(tmp_path, byte_level(), **configs)
    message = refusal(folder / "tokenizer.json")
    assert any(part in message for part in said.split("|"))


def test_json_without_an_end_or_a_decoder_or_with_wild_ids(tmp_path):
    folder = write_json(tmp_path, byte_level(special=["[x]"]))
    assert "which token ends a text: put" in refusal(folder / "tokenizer.json")
    model = byte_level()
    content = json.loads(model.to_str()) | {"decoder": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "has no decoder" in refusal(tmp_path / "tokenizer.json")
    content = json.loads(model.to_str())
    content["model"]["vocab"]["Ġlamp"] = 4_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert "ids up to 4000000000: it is damaged" in refusal(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("gpt2", {"pre": "qwen2"}, "the way of 'qwen2', not one of default, gpt-2, smollm"),
        ("bert", {}, "a tokenizer of the kind 'bert', not one of gpt2, llama"),
        (None, {}, "has no tokenizer"),
        ("gpt2", {"tokens": ["a", "a"]}, "two of its tokens alike"),
        ("gpt2", {"merges": ["turnip lamp"]}, "damaged tokenizer"),
        ("gpt2", {"merges": None}, "damaged tokenizer"),
        ("gpt2", {"tokens": [1, 2]}, "damaged tokenizer"),
        ("gpt2", {"eos_token_id": 5000}, "no token 5000"),
        ("gpt2", {"eos_token_id": None, "token_type": [1]}, "which token ends a text"),
        ("llama", {}, "damaged tokenizer"),  # has no scores
    ],
)
def test_gguf_tokenizers_that_cannot_be_used(tmp_path, kind, fields, said):
    message = refusal(write_gguf(tmp_path / "a.gguf", byte_level(), kind, **fields))
    assert said in message
    assert "no token 5000" in message or "set config.tokenizer.model" in message


def test_gguf_of_a_sentencepiece_llama(tmp_path):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=proto,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(proto.getvalue())
    own = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    ids = range(own.vocab_size())
    file = write_fields(
        tmp_path / "a.gguf",
        "llama",
        tokens=[own.id_to_piece(i) for i in ids],
        scores=[own.get_score(i) for i in ids],
        token_type=[
            2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 1
            for i in ids
        ],
        bos_token_id=1,
        eos_token_id=2,
        add_space_prefix=True,
    )
    first, twin = Tokenizer.load(tmp_path / "tokenizer.model"), Tokenizer.load(file)
    assert (twin.bos, twin.eos, twin.pad, twin.pieces) == (1, 2, 2, first.pieces)
    for text in [*TEXTS, "日本語 ½", "a  b", "<s>turn</s>"]:
        assert twin.encode(text) == first.encode(text)
        assert twin.decode(twin.encode(text)) == text


def test_a_run_keeps_the_tokenizer_of_its_decoder_unless_another_is_named(tmp_path):
    model, nothing = byte_level(), Source("nothing", "", [], [], lambda i: np.zeros(1, np.int16))
    decoder = Pretrained(decoder=str(write_gguf(tmp_path / "a.gguf", model)))
    other = write_json(tmp_path / "other", model, config={"eos_token_id": 0})
    for name, config, eos in (
        ("one", Config(pretrained=decoder), 2),
        ("two", Config(pretrained=decoder, tokenizer=TokenizerConfig(model=str(other))), 0),
    ):
        workdir = Workdir(tmp_path / name)
        with pytest.raises(TokenizerError, match="there is no text to train a tokenizer on"):
            open_tokenizer(Config(), workdir, nothing)
        workdir.claim(config)
        assert open_tokenizer(config, workdir, nothing).eos == eos
        assert workdir.tokenizer == workdir.path / "tokenizer.json"
        assert open_tokenizer(Config(), workdir, nothing).eos == eos
