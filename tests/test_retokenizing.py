"""An LLM's tokens, made on the device of what CTC reads, are those of its own tokenizer."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import Adaptor, Config, ConfigError, Decoder, Encoder, FrontEnd, Heads
from mtp_jax.models.bpe import Merges, retokenize
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import init_params
from mtp_jax.models.recogniser import call
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError
from mtp_jax.tokenizer.merges import merges_of
from tests.test_tokenizer_json import byte_level, write_json

TEXTS = [
    *("turn on the lamp", "turn off the radio at seven", "the number is nine five two"),
    *("it's in the lamp that no one wrote", "der bär fährt über den fluß", "un café à l'été"),
]
LABELS, R, C = 60, 12, 40
CONFIG = Config(
    front_end=FrontEnd(mel_bins=6),
    encoder=Encoder(subsampling=(4,), width=8, layers=1, heads=2, feedforward=1, kernel=3),
    adaptor=Adaptor(ctc_compression=True, retokenized=True),
    decoder=Decoder(width=8, layers=1, query_heads=2, kv_heads=1, head_size=4, feedforward=8),
    heads=Heads(count=1),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A byte-level BPE, and a SentencePiece model for CTC."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    folder = write_json(
        tmp_path_factory.mktemp("both") / "llm", byte_level(), tokenizer_config=names
    )
    Tokenizer.train(TEXTS, folder / CTC_NAME, LABELS, "bpe")
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def merges(tokenizer) -> Merges:
    made = merges_of(tokenizer)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def cut(merges):
    """The tokens of lists of labels, their number, and the parts of each."""
    jitted = jax.jit(lambda labels, count: retokenize(merges, labels, count, C, C))

    def run(*rows: list[int]):
        labels = np.zeros((len(rows), R), np.int32)
        for row, ids in zip(labels, rows, strict=True):
            row[: len(ids)] = ids
        made = jax.device_get(jitted(labels, np.array([len(ids) for ids in rows])))
        return [
            (tokens[:length].tolist(), parts[:length])
            for tokens, length, parts in zip(*made, strict=True)
        ]

    return run


def text_of(tokenizer: Tokenizer, labels: list[int]) -> str:
    pieces = (tokenizer.ctc.pieces[label] for label in labels if label >= 4)
    return " ".join("".join(pieces).replace("▁", " ").split())


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_cut_as_the_tokenizer_cuts_it(tokenizer, cut, text):
    labels = tokenizer.ctc.encode(text)[:R]
    ((tokens, _),) = cut(labels)
    assert tokens == tokenizer.encode(tokenizer.ctc.decode(labels))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, LABELS - 1), max_size=R), min_size=2, max_size=2))
def test_any_labels_are_cut_as_the_tokenizer_cuts_what_they_spell(tokenizer, cut, rows):
    """Special labels spell nothing, and a run of spaces is one; rows do not see each other."""
    # An apostrophe begins a word of its own for the tokenizer, of which merges know nothing.
    rows = [[x for x in ids if "'" not in tokenizer.ctc.pieces[x]] for ids in rows]
    for ids, (tokens, parts) in zip(rows, cut(*rows), strict=True):
        text = text_of(tokenizer, ids)
        if len(text.encode()) <= C:
            assert tokens == tokenizer.encode(text)
            assert parts.sum() == len(text.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_a_whispers_text_begins_with_a_space_spelled_or_not(tokenizer, merges, text):
    labels = tokenizer.ctc.encode(text)[:R]
    space = tokenizer.ctc.pieces.index("▁")
    expected = tokenizer.encode(f" {tokenizer.ctc.decode(labels)}")
    for row in ([space, space, *labels], labels):
        made = retokenize(merges, np.array([row]), np.array([len(row)]), 2 * C, C, True)
        assert made.tokens[0, : made.length[0]].tolist() == expected
    silent = retokenize(merges, np.array([[space, space]]), np.array([2]), C, C, True)
    assert silent.length[0] == 0


def test_each_token_knows_the_labels_that_it_is_made_of(tokenizer, cut):
    pieces = tokenizer.ctc.pieces
    labels = [pieces.index(piece) for piece in ("▁the", "▁", "▁", "l", "a", "m", "p")]
    ((tokens, parts),) = cut(labels)
    spelled = [tokenizer.pieces[token] for token in tokens]
    assert "".join(spelled) == "theĠlamp"
    np.testing.assert_array_equal(parts.sum(1), [len(piece) for piece in spelled])
    np.testing.assert_array_equal(parts.sum(0)[:7], [3, 1, 0, 1, 1, 1, 1])


def test_what_there_is_no_room_for_is_left_out(tokenizer, merges):
    labels = tokenizer.ctc.encode("turn on the lamp")
    row, count = np.array([labels]), np.array([len(labels)])
    expected = tokenizer.encode("turn on")
    for capacity, most, kept in ((8, 9, slice(None)), (99, 2, slice(2))):
        made = retokenize(merges, row, count, capacity, most)
        assert made.tokens[0, : made.length[0]].tolist() == expected[kept]
        assert made.tokens.shape == (1, min(capacity, most))
        assert made.parts.shape == (1, min(capacity, most), len(labels))


def test_equal_merges_are_equal(tokenizer, merges):
    again = merges_of(tokenizer)
    assert again == merges and hash(again) == hash(merges)
    other = dataclasses.replace(merges, rank=merges.rank[::-1].copy())
    assert other != merges and merges != "merges"


def test_the_prompt_holds_the_embeddings_of_the_tokens(tokenizer):
    model = make_model(CONFIG, tokenizer)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    assert "label_embedding" not in params
    label = tokenizer.ctc.pieces.index("▁the")
    tokens = tokenizer.encode("the")
    # CTC that says so whatever it hears, and an adaptor that adds nothing.
    bias = np.where(np.arange(LABELS + 1) == label, 50, 0).astype(np.float32)
    params["ctc"] = {"kernel": jnp.zeros_like(params["ctc"]["kernel"]), "bias": bias}
    adaptor, params["adaptor"] = params["adaptor"], jax.tree.map(jnp.zeros_like, params["adaptor"])
    features = np.random.default_rng(0).normal(size=(2, 20, 6)).astype(np.float32)
    encoded = call(SpeechLlama.encode, model, params, features, np.array([20, 9]))
    read, count = encoded.ctc_hypothesis
    assert encoded.length.tolist() == count.tolist() == [len(tokens)] * 2
    assert read[:, : len(tokens)].tolist() == [tokens] * 2
    embedding = params["decoder"]["embedding"][np.array(tokens)]
    for row in encoded.audio:
        np.testing.assert_allclose(row[: len(tokens)], embedding, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(row[len(tokens) :], 0)
    # Each of them is scored in the frames of its labels: here all have the same.
    scored = call(
        SpeechLlama.encode, model, params | {"adaptor": adaptor}, features, np.array([20, 9])
    )
    added = (scored.audio - encoded.audio)[:, : len(tokens)]
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1], added.shape), atol=1e-5)
    assert np.abs(added).max() > 0.1


def test_where_ctc_reads_nothing_there_is_one_embedding(tokenizer):
    model = make_model(CONFIG, tokenizer)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    blank = np.where(np.arange(LABELS + 1) == LABELS, 50, 0).astype(np.float32)
    params["ctc"] = {"kernel": jnp.zeros_like(params["ctc"]["kernel"]), "bias": blank}
    features = np.random.default_rng(0).normal(size=(2, 20, 6)).astype(np.float32)
    encoded = call(SpeechLlama.encode, model, params, features, np.array([20, 0]))
    assert encoded.length.tolist() == [1, 0]
    assert np.abs(encoded.audio[0, 0]).max() > 0.1


def test_a_tokenizer_of_another_kind_is_refused(tokenizer):
    assert merges_of(tokenizer.ctc.with_ctc(tokenizer.ctc)) is None
    with pytest.raises(TokenizerError, match=r"config\.adaptor\.retokenized needs .*: set it"):
        make_model(CONFIG, tokenizer.ctc)
    with pytest.raises(ConfigError, match=r"config\.adaptor\.retokenized needs"):
        Adaptor(retokenized=True)
