"""Stretches of what is heard: laws that hold whatever is said, and however it comes."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.audio.live_segmentation import LiveSegmenter, Stretch
from mtp_jax.audio.segmentation import MARGIN, PAUSE
from tests.test_cutting import RATE, WINDOW, Loudness, recording, recordings

settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
longest_of = st.sampled_from([2.0, 3.2, 17.2])


def stretches(audio: np.ndarray, longest: float, sizes=(700,)) -> list[Stretch]:
    """Of audio that comes in pieces of these sizes, again and again."""
    found: list[Stretch] = []
    at, turn = 0, 0
    with LiveSegmenter(RATE, longest, Loudness) as segmenter:
        while at < len(audio):
            piece = audio[at : at + sizes[turn % len(sizes)]]
            found += segmenter.feed(piece)
            at, turn = at + len(piece), turn + 1
            if open_ := segmenter.open():
                assert open_.number == len(found)
                assert len(open_.audio) <= longest * RATE
                begin = round(open_.start * RATE)
                np.testing.assert_array_equal(open_.audio, audio[begin : begin + len(open_.audio)])
        assert segmenter.seconds == pytest.approx(len(audio) / RATE)
        return found + segmenter.finish()


@settings
@hypothesis.given(recordings, longest_of)
def test_stretches_hold_all_speech_once_and_fit(audio, longest):
    found = stretches(audio, longest)
    scored = np.zeros(len(audio), int)
    for i, each in enumerate(found):
        start = round(each.start * RATE)
        assert each.number == i and 0 < len(each.audio) <= longest * RATE
        np.testing.assert_array_equal(each.audio, audio[start : start + len(each.audio)])
        scored[start : start + len(each.audio)] += 1
    assert scored.max(initial=0) <= 1
    missed = np.flatnonzero((scored == 0) & (audio != 0))
    # Speech shorter than the detector's window at the very end is all that may be left out.
    assert not len(missed) or missed.min() >= len(audio) - WINDOW


@settings
@hypothesis.given(recordings, longest_of, st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_how_it_comes_changes_nothing(audio, longest, sizes):
    ours, theirs = stretches(audio, longest), stretches(audio, longest, sizes)
    assert [(s.number, s.start) for s in ours] == [(s.number, s.start) for s in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)


def test_a_stretch_is_over_once_a_pause_has_lasted():
    audio = recording([(2, 1), (2, 0.6), (1, 0)])
    found: list[tuple[float, Stretch]] = []
    with LiveSegmenter(RATE, 17.2, Loudness) as segmenter:
        for at in range(0, len(audio), WINDOW):
            found += [(segmenter.seconds, s) for s in segmenter.feed(audio[at : at + WINDOW])]
            if segmenter.seconds == 2.5:
                assert len(segmenter.open().audio) / RATE == pytest.approx(2 + MARGIN, abs=0.04)
        found += [(segmenter.seconds, s) for s in segmenter.finish()]
    (at, first), (_, second) = found
    assert at == pytest.approx(2 + PAUSE, abs=0.07)
    assert (first.start, len(first.audio) / RATE) == (0, pytest.approx(2 + MARGIN, abs=0.04))
    assert second.start == pytest.approx(3 - MARGIN, abs=0.04)  # 0.6 s do not end it
    assert second.start + len(second.audio) / RATE == pytest.approx(6.6)


def test_a_long_one_is_cut_at_a_pause_or_where_it_is_quietest():
    first, *_ = stretches(recording([(2.5, 0.3), (4, 0)]), 4.0)
    assert len(first.audio) / RATE == pytest.approx(2.65, abs=0.04)
    audio = recording([(9, 0)])
    audio[2600:2700] = 1  # still speech, but faint
    first, second, *_ = stretches(audio, 4.0)
    assert len(first.audio) / RATE == pytest.approx(2.65, abs=0.05)
    assert second.start == pytest.approx(first.start + len(first.audio) / RATE)


def test_silence_is_none_and_is_not_kept():
    with LiveSegmenter(RATE, 3.2, Loudness) as segmenter:
        for _ in range(100):
            assert segmenter.feed(np.zeros(RATE, np.int16)) == []
        assert segmenter.open() is None and segmenter.finish() == []
        assert sum(map(len, segmenter._parts)) <= RATE
        # What comes behind an end is heard as ever.
        segmenter.feed(recording([(1, 0.2)]))
        (only,) = segmenter.finish()
        assert only.start == pytest.approx(100, abs=0.04) and segmenter.finish() == []


def test_an_end_cuts_at_the_sample():
    with LiveSegmenter(RATE, 3.2, Loudness) as segmenter:
        segmenter.feed(recording([(1.005, 0)]))
        (first,) = segmenter.finish()
        segmenter.feed(recording([(1, 0)]))
        (second,) = segmenter.finish()
    assert len(first.audio) == 1005 and second.start == 1.005 and second.number == 1


class Faint(Loudness):
    """Is never sure."""

    def feed(self, block: np.ndarray) -> np.ndarray:
        return 0.2 * super().feed(block)


def test_a_word_that_the_detector_is_not_sure_of_is_given_the_benefit():
    for seconds, count in ((0.5, 1), (2.0, 0)):
        with LiveSegmenter(RATE, 3.2, Faint) as segmenter:
            assert segmenter.feed(recording([(seconds, 0)])) == []
            assert len(segmenter.finish()) == count


def test_the_real_detector_hears_sentences(waves):
    pause = np.zeros(20_000, np.int16)
    audio = np.concatenate([waves[0], pause, waves[1], pause])
    found: list[Stretch] = []
    with LiveSegmenter(16_000, 17.2) as segmenter:
        for at in range(0, len(audio), 999):
            found += segmenter.feed(audio[at : at + 999])
        assert segmenter.open() is None
    assert len(found) == 2
