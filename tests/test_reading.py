"""Drafts from what CTC reads, and heads beside it: alignment by brute force, a slow loop."""

from __future__ import annotations

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.decoding import Decoded, DraftsError, Greedy, Verify
from mtp_jax.decoding.alignment import ERROR, MATCH, Aligner, DraftText
from mtp_jax.decoding.drafts import MIN_PROBABILITY
from tests.test_decoding import LIMIT, few_examples, over, texts, unoptimized
from tests.toy import DRAFTS, EOS, PERFECT, VOCABULARY, ByHand, Toy, by_hand, make

ROWS, ROOM, WIDTH = 8, 12, 4
KINDS = [0, 1, 0, 1, 1, 0, 1]  # of the tokens
ordinary = st.integers(0, VOCABULARY - 1).filter(lambda token: token != EOS)
read = st.lists(st.lists(ordinary, max_size=ROOM), min_size=ROWS, max_size=ROWS)


def reading_of(rows: list[list[int]]) -> DraftText:
    """Behind the last token of a row stands one that it could be taken for."""
    padded = [row + [VOCABULARY - 1] * (ROOM - len(row)) for row in rows]
    return DraftText(jnp.array(padded, jnp.int32), jnp.array([len(row) for row in rows], jnp.int32))


@functools.cache
def score(said: tuple[int, ...], row: tuple[int, ...]) -> int:
    """That of the best alignment, by its definition; four fifths of it are left a token later."""
    if not said:
        return ERROR * len(row)
    found = [4 * score(said[:-1], row) // 5 + ERROR]
    if row:
        replaced = ERROR if KINDS[said[-1]] == KINDS[row[-1]] else 2 * ERROR
        counted = MATCH if said[-1] == row[-1] else replaced
        found.append(4 * score(said[:-1], row[:-1]) // 5 + counted)
        found.append(score(said, row[:-1]) + ERROR)
    return max(found)


def nearest(row: list[int], text: list[int]) -> int:
    """`Aligner.end`, by its definition."""
    found = [score(tuple(text), tuple(row[:end])) for end in range(len(row) + 1)]
    return max(i for i, each in enumerate(found) if each == max(found))


def reads_on(row: list[int], text: list[int], width: int) -> list[int]:
    """`Aligner.continuation`, by its definition."""
    return (row[nearest(row, text) :] + [EOS] * width)[:width]


def jointly(lm: ByHand, row: list[int], text: list[int], width: int) -> list[int]:
    """Drafts of `joint_drafts`, by its definition."""
    end, own, probability = nearest(row, text), [], 1.0
    if not end or row[end - 1] != text[-1]:
        for draft, its_probability in lm.drafts(text[:-1]):
            probability *= its_probability
            if probability < MIN_PROBABILITY:
                break
            own.append(draft)
    return (own + reads_on(row, [*text, *own], width))[:width]


@few_examples
@hypothesis.given(read, read, st.integers(0, ROOM))
def test_it_goes_on_where_the_reading_is_nearest_to_the_text(rows, said, first) -> None:
    """Whether the text comes at once or in two parts."""
    reading, text = reading_of(rows), reading_of(said)
    part = jnp.minimum(text.length, first)
    rest = jnp.take_along_axis(
        text.tokens, jnp.minimum(part[:, None] + jnp.arange(ROOM), ROOM - 1), axis=1
    )
    aligner = Aligner(reading, jnp.array(KINDS, jnp.int8))
    known = aligner.advance(aligner.start(), text.tokens, part)
    known = aligner.advance(known, rest, text.length - part)
    for i, (row, words) in enumerate(zip(rows, said, strict=True)):
        expected = [score(tuple(words), tuple(row[:end])) for end in range(len(row) + 1)]
        assert known[i, : len(row) + 1].tolist() == expected
    drafts = aligner.continuation(known, WIDTH, EOS)
    assert drafts.tolist() == [reads_on(a, b, WIDTH) for a, b in zip(rows, said, strict=True)]


def test_only_a_token_of_the_same_kind_is_replaced() -> None:
    """A mark that the text does not have was put in, and what follows is still to come."""
    text = DraftText(jnp.array([[1, 3, 4, 6]]), jnp.array([4]))
    output, count = jnp.array([[1, 5]]), jnp.array([2])
    for kinds, rest in ((jnp.array(KINDS, jnp.int8), [3, 4, 6]), (None, [4, 6, EOS])):
        aligner = Aligner(text, kinds)
        scores = aligner.advance(aligner.start(), output, count)
        assert aligner.continuation(scores, 3, EOS).tolist() == [rest]


def test_a_passage_without_agreement_is_forgotten() -> None:
    """Behind three tokens in the place of eight, two that agree say where the output is."""
    text = DraftText(jnp.array([[0] * 8 + [1, 3, 4, 6]]), jnp.array([12]))
    output, count = jnp.array([[5, 5, 5, 1, 3]]), jnp.array([5])
    aligner = Aligner(text)
    scores = aligner.advance(aligner.start(), output, count)
    assert aligner.continuation(scores, 2, EOS).tolist() == [[4, 6]]


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=unoptimized)
def decode(width: int, toys: Toy, reading: DraftText, joint: bool = False) -> Decoded:
    kinds = jnp.array(KINDS, jnp.int8)
    model = toys.model()._replace(ctc_hypothesis=reading, token_kinds=kinds)
    return Verify(width, joint).decode(model, jnp.ones(ROWS, bool), LIMIT)


def slowly(lm: ByHand, row: list[int], joint: bool = False) -> tuple[list[int], int, int]:
    """Text, calls and accepted drafts; one row, Python lists, no cache."""
    text, calls, accepted = [lm.next_token([])], 1, 0
    while not over(text, LIMIT):
        calls += 1
        drafts = (jointly(lm, row, text, WIDTH) if joint else reads_on(row, text, WIDTH))[:-1]
        text = [*text, lm.next_token(text)]
        for draft in drafts:
            if draft != text[-1]:
                break
            accepted += 1
            if over(text, LIMIT):
                break
            text = [*text, lm.next_token(text)]
    return text, calls, accepted


@few_examples
@hypothesis.given(read, st.integers(0, 9_999), st.sampled_from([2, 9, 10_000]))
def test_verification_is_the_slow_loop(rows, seed, eos_every) -> None:
    toys = make(ROWS, 1, seed=seed, eos_every=eos_every)
    found = jax.device_get(decode(WIDTH, toys, reading_of(rows)))
    slow = [slowly(lm, row) for lm, row in zip(by_hand(toys), rows, strict=True)]
    assert texts(found) == [text for text, _, _ in slow]
    assert found.calls.tolist() == [calls for _, calls, _ in slow]
    assert found.accepted.sum(axis=1).tolist() == [accepted for _, _, accepted in slow]


@pytest.mark.parametrize("heads", [3, 6])
def test_joint_verification_is_the_slow_loop(heads) -> None:
    """More heads than the width, or fewer; serial ones, which stop by themselves, or others."""

    @few_examples
    @hypothesis.given(read, st.integers(0, 9_999), st.booleans(), st.permutations(range(ROWS)))
    def check(rows, seed, serial, kinds) -> None:
        kinds = [kind % len(DRAFTS) for kind in kinds]
        toys = make(ROWS, heads, seed=seed, eos_every=20, drafts=kinds, serial=serial)
        found = jax.device_get(decode(WIDTH, toys, reading_of(rows), True))
        slow = [slowly(lm, row, True) for lm, row in zip(by_hand(toys), rows, strict=True)]
        assert texts(found) == [text for text, _, _ in slow]
        assert found.calls.tolist() == [calls for _, calls, _ in slow]
        assert found.accepted.sum(axis=1).tolist() == [accepted for _, _, accepted in slow]

    check()


def test_heads_go_on_where_the_reading_says_nothing() -> None:
    """An insertion costs one call instead of two, and heads that are right save the rest."""
    toys = make(ROWS, 4, eos_every=10_000, drafts=PERFECT)
    text = texts(Greedy().decode(toys.model(), jnp.ones(ROWS, bool), LIMIT))
    assert all(len(row) == LIMIT for row in text)
    without = [[*row[:3], *row[4:]] for row in text]
    alone, joint = (
        jax.device_get(decode(WIDTH, toys, reading_of(without), joint)) for joint in (False, True)
    )
    assert texts(alone) == texts(joint) == text
    assert joint.calls.sum() < alone.calls.sum()


@pytest.mark.parametrize("heads", [1, 3])
def test_the_text_is_greedys_whatever_ctc_reads(heads: int) -> None:
    rng = np.random.default_rng(heads)
    for seed in range(5):
        toys = make(ROWS, heads, seed=seed, eos_every=20)
        greedy = Greedy().decode(toys.model(), jnp.ones(ROWS, bool), LIMIT)
        best = [[t for t in text if t != EOS] for text in texts(greedy)]
        spoilt = [[int(t) if rng.random() < 0.7 else 4 for t in text] for text in best]
        same, near, none = (
            jax.device_get(decode(WIDTH, toys, reading_of(rows)))
            for rows in (best, spoilt, [[]] * ROWS)
        )
        for found in (same, near, none):
            assert texts(found) == texts(greedy)
            assert found.proposed.shape == (ROWS, WIDTH - 1)
        full = [1 + math.ceil((n - 1) / WIDTH) for n in greedy.length.tolist()]
        assert same.calls.tolist() == full
        assert same.calls.sum() < near.calls.sum() < none.calls.sum() <= greedy.calls.sum()


def test_a_model_that_reads_nothing_is_refused() -> None:
    with pytest.raises(DraftsError, match="whose text is made into the decoder's tokens"):
        Verify(4).decode(make(ROWS, 2).model(), jnp.ones(ROWS, bool), LIMIT)
