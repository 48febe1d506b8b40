"""The tokenizer: round trips, determinism, and a sentence for everything that can be wrong."""

import io

import pytest
import sentencepiece

from mtp_jax.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerError, check_fit
from mtp_jax.tokenizer.sentencepiece import SentencePieceTokenizer

TEXTS = [
    *("turn on the lamp", "turn off the radio at seven", "the number is nine five two"),
    *("remind anna to call the doctor", "wake me up at half past six", "is it café or cafe"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXTS, tmp_path_factory.mktemp("tokenizer") / "m.model", 36)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_decode_undoes_encode(tmp_path, algorithm):
    tokenizer = Tokenizer.train(TEXTS, tmp_path / "m.model", 36, algorithm)
    for text in [*TEXTS, "a lamp that no one wrote"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_is_not_normalised(tmp_path):
    texts = ["ＡＢＣ ①", "cafe\u0301", "தமிழ் மொழி"]  # all of which NFKC or NFC would change
    tokenizer = Tokenizer.train(texts, tmp_path / "m.model", 20)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_special_pieces(tokenizer):
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (PAD, BOS, EOS)
    assert tokenizer.vocab_size == len(tokenizer.pieces) == 36
    ids = tokenizer.encode(TEXTS[0])
    assert not {PAD, BOS, EOS} & set(ids)
    assert tokenizer.decode([BOS, *ids, EOS, PAD]) == TEXTS[0]
    assert tokenizer.encode("") == []


def test_training_is_deterministic_and_a_saved_model_is_the_same(tmp_path):
    first = Tokenizer.train(TEXTS, tmp_path / "a" / "m.model", 36)
    Tokenizer.train(TEXTS, tmp_path / "b.model", 36).save(tmp_path / "c.model")
    model = (tmp_path / "a" / "m.model").read_bytes()
    assert model == (tmp_path / "b.model").read_bytes() == (tmp_path / "c.model").read_bytes()
    assert Tokenizer.load(tmp_path / "c.model").pieces == first.pieces
    assert not list(tmp_path.glob("*.partial"))


def _foreign(**ids: int) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=32, minloglevel=2, **ids
    )
    return SentencePieceTokenizer(model.getvalue())


def test_a_model_without_padding_pads_with_eos():
    llama = _foreign(pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    assert (llama.bos, llama.eos, llama.pad) == (1, 2, 2)


def test_a_model_without_bos_begins_with_eos():
    assert _foreign(pad_id=0, unk_id=1, bos_id=-1, eos_id=2).bos == 2


def test_a_model_without_eos_is_refused():
    with pytest.raises(TokenizerError, match="no end-of-sentence"):
        _foreign(unk_id=0, bos_id=1, eos_id=-1)


def test_too_large_a_vocabulary_names_the_largest(tmp_path):
    with pytest.raises(TokenizerError, match=r"vocab_size to (\d+) or less") as error:
        Tokenizer.train(TEXTS, tmp_path / "m.model", 5000)
    most = int(str(error.value).split()[-3])
    assert Tokenizer.train(TEXTS, tmp_path / "m.model", most).vocab_size == most


def test_too_small_a_vocabulary_names_the_smallest(tmp_path):
    with pytest.raises(TokenizerError, match=r"vocab_size to (\d+) or more") as error:
        Tokenizer.train(TEXTS, tmp_path / "m.model", 8)
    least = int(str(error.value).split()[-3])
    assert Tokenizer.train(TEXTS, tmp_path / "m.model", least).vocab_size == least


def test_no_text(tmp_path):
    with pytest.raises(TokenizerError, match="no text"):
        Tokenizer.train(["", "  "], tmp_path / "m.model", 36)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "m.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"m\.model is not a SentencePiece model"):
        Tokenizer.load(path)


def test_a_truncated_model(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "m.model")
    whole = (tmp_path / "m.model").read_bytes()
    (tmp_path / "m.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"m\.model"):
        Tokenizer.load(tmp_path / "m.model")


def test_missing_file_and_unwritable_place(tmp_path, tokenizer):
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "file").touch()
    with pytest.raises(TokenizerError, match="cannot be written"):
        tokenizer.save(tmp_path / "file" / "m.model")


@pytest.mark.parametrize("token", [-1, 36])
def test_a_token_outside_the_vocabulary(tokenizer, token):
    with pytest.raises(TokenizerError, match="outside the vocabulary of 36 pieces"):
        tokenizer.decode([token])


def test_a_text_that_names_special_pieces_is_text(tokenizer):
    llama = _foreign(pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    for one in (tokenizer, llama):
        assert not {one.pad, one.bos, one.eos} & set(one.encode("<s>turn on</s> <pad>"))


def test_a_folder_is_read_and_written_by_the_file_in_it(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]
    assert Tokenizer.load(tmp_path).pieces == tokenizer.pieces


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json, .* and no GGUF file"):
        Tokenizer.load(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json, and 2 GGUF files"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_fits_an_embedding_of_as_many_rows_or_more(tokenizer):
    check_fit(tokenizer, 36, "smol.gguf")
    check_fit(tokenizer, 64, "smol.gguf")
    with pytest.raises(TokenizerError, match=r"36 tokens does not fit smol\.gguf, .* 35 rows: set"):
        check_fit(tokenizer, 35, "smol.gguf")
