"""Forced alignment against brute force, and what holds of every alignment."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from mtp_jax.transcription.alignment import align

settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


def drawn(frames: int, classes: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(frames, classes)) * 2
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


@settings
@hypothesis.given(st.integers(0, 6), st.lists(st.integers(0, 1), max_size=3), st.integers(0, 99))
def test_equals_brute_force(frames, labels, seed):
    log_probs = drawn(frames, 3, seed)
    paths = [
        path
        for path in itertools.product(range(3), repeat=frames)
        if collapse(path, 2) == tuple(labels)
    ]
    found = align(log_probs, labels)
    if not paths:
        assert found is None
        return
    scores = [sum(log_probs[range(frames), list(path)]) for path in paths]
    best = paths[int(np.argmax(scores))]
    assert found is not None
    np.testing.assert_allclose(found.score, max(scores))
    runs, frame = [], 0
    for label, run in itertools.groupby(best):
        size = len(list(run))
        if label != 2:
            runs.append((frame, frame + size - 1))
        frame += size
    assert list(zip(found.first.tolist(), found.last.tolist(), strict=True)) == runs
    expected = [sum(log_probs[a : b + 1, n]) for (a, b), n in zip(runs, labels, strict=True)]
    np.testing.assert_allclose(found.log_probs, expected)


@settings
@hypothesis.given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 99))
def test_labels_are_in_order_and_shifts_shift(labels, seed):
    log_probs = drawn(20, 6, seed)
    found = align(log_probs, labels)
    assert found is not None
    assert (found.first <= found.last).all()
    assert (found.last[:-1] < found.first[1:]).all()
    silence = np.full((3, 6), -30.0)
    silence[:, -1] = 0
    later = align(np.concatenate([silence, log_probs]), labels)
    assert later is not None
    np.testing.assert_allclose(later.score, found.score)
    np.testing.assert_array_equal(later.first, found.first + 3)


def test_a_text_that_was_said_is_found_where_it_was():
    path = [5, 0, 0, 5, 0, 1, 5, 5, 2]
    log_probs = np.full((len(path), 6), -9.0)
    log_probs[range(len(path)), path] = -0.01
    found = align(log_probs, [0, 0, 1, 2])
    assert found is not None
    assert found.first.tolist() == [1, 4, 5, 8]
    assert found.last.tolist() == [2, 4, 5, 8]


def test_no_label_and_no_frame():
    found = align(np.zeros((0, 3)), [])
    assert found is not None
    assert found.score == 0
    assert align(np.zeros((0, 3)), [1]) is None
    assert align(drawn(4, 3, 0), [1, 1, 1]) is None  # needs a blank between each two
