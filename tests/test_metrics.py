from __future__ import annotations

import random
from collections.abc import Sequence

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.evaluation.metrics import (
    ErrorRate,
    bootstrap_difference,
    character_errors,
    normalizer,
    word_errors,
)


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein's distance by its recursive definition."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    last = reference[-1] != hypothesis[-1]
    return min(
        edits(reference[:-1], hypothesis[:-1]) + last,
        edits(reference[:-1], hypothesis) + 1,
        edits(reference, hypothesis[:-1]) + 1,
    )


sentences = st.lists(st.sampled_from(["ab", "c", "d"]), max_size=5).map(" ".join)
corpora = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=4)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(corpora)
def test_errors_are_levenshtein_distances(corpus: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*corpus, strict=True)
    words = word_errors(references, hypotheses, "none")
    assert words.units == tuple(len(r.split()) for r in references)
    assert words.errors == tuple(edits(r.split(), h.split()) for r, h in corpus)
    short = [(r[:5].strip(), h[:5].strip()) for r, h in corpus]
    characters = character_errors(*zip(*short, strict=True), "none")
    assert characters.units == tuple(len(r) for r, _ in short)
    assert characters.errors == tuple(edits(r, h) for r, h in short)


def test_rates_are_of_the_corpus_not_means_over_utterances() -> None:
    rate = word_errors(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"], "none")
    assert rate.percent == pytest.approx(10.0)


def test_empty_references_are_counted_not_replaced() -> None:
    words = word_errors(["", "one two", ""], ["well now", "one two", ""], "none")
    assert words == ErrorRate(errors=(2, 0, 0), units=(0, 2, 0))
    assert words.percent == pytest.approx(100.0)
    assert character_errors([""], ["abc"], "none") == ErrorRate((3,), (0,))
    assert word_errors([""], [""], "none").percent == 0.0
    assert word_errors(["one two"], [""], "none").percent == pytest.approx(100.0)
    # Nothing but punctuation and fillers is an empty reference to the English normaliser.
    assert word_errors(["uh, mm!"], [""], "english") == ErrorRate((0,), (0,))


def test_both_sides_need_as_many_utterances() -> None:
    with pytest.raises(ValueError, match="zip"):
        word_errors(["a", "b"], ["a"], "none")


def test_the_english_normalizer_does_what_leaderboards_do() -> None:
    same = [
        ("twenty five", "25"),
        ("It's Mr. Smith's colour, isn't it?", "it is mister smith's color is not it"),
        ("uh, two thousand and six", "2006"),
        ("five dollars", "$5"),
    ]
    for reference, other in same:
        assert word_errors([reference], [other], "english").percent == 0.0, reference
    assert word_errors(["twenty five"], ["26"], "english").percent == pytest.approx(100.0)


def test_the_other_normalizers() -> None:
    assert normalizer("basic")("Grüß Gott, 25!").split() == ["grüß", "gott", "25"]
    assert normalizer("none")("  It's \t 25! ") == "It's 25!"
    assert normalizer("english") is normalizer("english")


def rate(errors: Sequence[int]) -> ErrorRate:
    return ErrorRate(tuple(errors), (8,) * len(errors))


def test_the_bootstrap_interval() -> None:
    rng = random.Random(0)
    base = [rng.choice([0, 0, 1, 2]) for _ in range(200)]
    ours, theirs = rate(base), rate([e + rng.choice([0, 1]) for e in base])
    assert bootstrap_difference(ours, ours) == (0.0, 0.0)

    low, high = bootstrap_difference(ours, theirs)
    difference = ours.percent - theirs.percent
    assert low < difference < high < 0
    assert bootstrap_difference(theirs, ours) == pytest.approx((-high, -low), abs=0.1)

    shuffled = base.copy()
    rng.shuffle(shuffled)  # a system just as good that errs elsewhere
    low, high = bootstrap_difference(ours, rate(shuffled))
    assert low < 0 < high


def test_the_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    change = rng.integers(0, 5, 1000)
    ours, theirs = rate(change.tolist()), rate([0] * 1000)
    low, high = bootstrap_difference(ours, theirs)
    spread = 100 * 1.96 * change.std() / 8 / np.sqrt(1000)
    assert high - low == pytest.approx(2 * spread, rel=0.05)


def test_the_bootstrap_is_deterministic() -> None:
    ours, theirs = rate([0, 1, 2, 0, 3]), rate([1, 1, 0, 0, 4])
    assert bootstrap_difference(ours, theirs) == bootstrap_difference(ours, theirs)


def test_the_bootstrap_refuses_other_references() -> None:
    with pytest.raises(ValueError, match="same references"):
        bootstrap_difference(ErrorRate((1,), (2,)), ErrorRate((1,), (3,)))
