"""Words on the device against the words of decoded text, and jiwer's word errors."""

import jax
import jiwer
import numpy as np
import pytest

from mtp_jax.tokenizer import Tokenizer
from mtp_jax.training.edit_distance import edit_distance
from mtp_jax.training.word_hashes import Spelling, words
from tests.test_tokenizer_json import byte_level, write_json

TEXTS = [
    "the cat sat on the mat",
    "a catalogue of cats and other animals",
    "it's the other cat's mat, isn't it",
    "an ant and a panther",
    "über élan naïve",
]


@pytest.fixture(scope="module", params=["unigram", "bpe", "byte-level"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        return Tokenizer.load(write_json(folder, byte_level()))
    return Tokenizer.train(TEXTS, folder, 40, request.param)


def padded(rows):
    length = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), max(1, *length)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, length


def drawn(tokenizer, count, seed=0):
    """Rows of tokens as a recogniser might give them: any at all, in any order."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, tokenizer.vocab_size, rng.integers(0, 20)) for _ in range(count)]
    return [row.tolist() for row in rows]


def spelled(tokenizer, row):
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    text = "".join(tokenizer.pieces[t] for t in row if t not in special)
    return text.replace("▁", " ").replace("Ġ", " ").split()


def test_the_same_words_have_the_same_numbers_however_they_are_cut(tokenizer):
    rows = drawn(tokenizer, 200) + [tokenizer.encode(text) for text in TEXTS]
    characters = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    space = "Ġ" if any("Ġ" in piece for piece in tokenizer.pieces) else "▁"
    for text in TEXTS[:4]:  # by characters
        rows.append([characters[c] for c in text.replace(" ", space) if c in characters])
    expected = [spelled(tokenizer, row) for row in rows]
    found, count = jax.jit(words)(Spelling.of(tokenizer), *padded(rows))
    numbers: dict[str, int] = {}
    for row, n, wanted in zip(np.asarray(found), count, expected, strict=True):
        assert n == len(wanted)
        for number, word in zip(row[:n].tolist(), wanted, strict=True):
            assert numbers.setdefault(word, number) == number
        assert not row[n:].any()
    assert len(set(numbers.values())) == len(numbers) > 100


def test_texts_have_the_words_of_their_texts(tokenizer):
    rows = [[*tokenizer.encode(text), tokenizer.eos] for text in TEXTS]
    _, count = words(Spelling.of(tokenizer), *padded(rows))
    assert count.tolist() == [len(text.split()) for text in TEXTS]


def test_without_what_is_written_case_and_punctuation_are_no_matter(tmp_path):
    """Of texts as a recogniser writes them, the words are those that a normaliser leaves."""
    pairs = [
        ("It's the cat's mat, isn't it?", "it's the cat's mat isn't it"),
        ("A well-known cat. And/or a mat!", "a well known cat and or a mat"),
        ('"The cat," he said: "sat."', "the cat he said sat"),
        ("Über - élan (naïve)", "Über élan naïve"),
    ]
    texts = [text for pair in pairs for text in pair] * 4
    byte_pieces = Tokenizer.load(write_json(tmp_path, byte_level()))
    for tokenizer in (Tokenizer.train(texts, tmp_path / "trained", 60, "bpe"), byte_pieces):
        for text, plain in pairs:
            rows = padded([tokenizer.encode(text), tokenizer.encode(plain)])
            found, count = words(Spelling.of(tokenizer, written=False), *rows)
            assert count.tolist() == [len(plain.split())] * 2
            np.testing.assert_array_equal(*found[:, : count[0]])
            as_written, count = words(Spelling.of(tokenizer), *rows)
            assert not np.array_equal(*as_written)


def test_distances_are_those_of_jiwer():
    rng = np.random.default_rng(0)
    a = [rng.integers(0, 4, rng.integers(0, 8)).tolist() for _ in range(300)]
    b = [rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(300)]
    got = jax.jit(edit_distance)(*padded(a), *padded(b))
    for x, y, distance in zip(a, b, got, strict=True):
        if not x:
            assert distance == len(y)
            continue
        out = jiwer.process_words(" ".join(map(str, x)), " ".join(map(str, y)))
        assert distance == out.substitutions + out.deletions + out.insertions


def test_padding_is_not_looked_at():
    (a, na), (b, nb) = padded([[1, 2, 3], [1]]), padded([[1, 3], [2, 2]])
    expected = edit_distance(a, na, b, nb)
    a[1, 1:], b = 7, np.pad(b, ((0, 0), (0, 3)), constant_values=7)
    np.testing.assert_array_equal(edit_distance(a, na, b, nb), expected)
    np.testing.assert_array_equal(expected, [1, 2])
