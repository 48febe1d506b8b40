"""Cutting, joining and loops: laws that hold whatever is said."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.audio.segmentation import MARGIN, PAUSE, Chunk, cut, halves, overlap
from mtp_jax.audio.vad import WINDOW_SECONDS, VoiceActivity
from mtp_jax.transcription.repetition import COPIES, find_repetition, trim_repetitions
from mtp_jax.transcription.results import Segment, Word
from mtp_jax.transcription.stitching import resolve_overlap, stitch

RATE = 1000
WINDOW = round(WINDOW_SECONDS * RATE)
settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


class Loudness:
    """Stands in for the detector: what is not 0 is speech."""

    def __init__(self, rate: int) -> None:
        self.left = np.zeros(0, np.int16)

    def __enter__(self):
        return self

    def __exit__(self, *unused: object) -> None: ...

    def feed(self, block: np.ndarray) -> np.ndarray:
        samples = np.concatenate([self.left, block])
        whole = len(samples) // WINDOW
        self.left = samples[whole * WINDOW :]
        return (samples[: whole * WINDOW].reshape(whole, WINDOW).any(1)).astype(np.float32)


def recording(runs: list[tuple[float, float]]) -> np.ndarray:
    """Speech and silence in turn, of these seconds each; every sample of speech is its own."""
    parts, count = [], 0
    for speech, silence in runs:
        size = round(speech * RATE)
        parts += [(np.arange(count, count + size) % 30_000 + 1).astype(np.int16)]
        parts += [np.zeros(round(silence * RATE), np.int16)]
        count += size
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def pieces(audio: np.ndarray, longest: float, block: int = 700) -> list[Chunk]:
    blocks = (audio[i : i + block] for i in range(0, len(audio), block))
    return list(cut(blocks, RATE, longest, Loudness))


lengths = st.tuples(st.floats(0.05, 9), st.floats(0, 2.5))
recordings = st.lists(lengths, max_size=8).map(recording)


@settings
@hypothesis.given(recordings, st.sampled_from([2.0, 3.2, 17.2]), st.integers(100, 5000))
def test_pieces_hold_all_speech_in_order_and_fit(audio, longest, block):
    found = pieces(audio, longest, block)
    scored = np.zeros(len(audio), int)
    for i, piece in enumerate(found):
        start = round(piece.start * RATE)
        assert len(piece.audio) <= longest * RATE + 1
        np.testing.assert_array_equal(piece.audio, audio[start : start + len(piece.audio)])
        scored[start : start + len(piece.audio)] += 1
        if i:
            before = found[i - 1]
            shared = before.start + len(before.audio) / RATE - piece.start
            assert shared <= (overlap(longest) + 2 * WINDOW_SECONDS if piece.overlaps else 1e-3)
            assert piece.start > before.start
    missed = np.flatnonzero((scored == 0) & (audio != 0))
    # Speech shorter than the detector's window at the very end is all that may be left out.
    assert not len(missed) or missed.min() >= len(audio) - WINDOW
    assert scored.max(initial=0) <= 2
    assert sum(piece.covered for piece in found) <= len(audio) / RATE + 1e-6


@settings
@hypothesis.given(recordings, st.integers(50, 5000))
def test_how_it_is_read_changes_nothing(audio, block):
    ours, theirs = pieces(audio, 3.2), pieces(audio, 3.2, block)
    assert [(p.start, p.overlaps) for p in ours] == [(p.start, p.overlaps) for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)


def test_a_pause_parts_and_silence_is_left_out():
    audio = recording([(2, 1), (2, 5), (2, 0.1), (0.9, 3)])
    found = pieces(audio, 4.0)
    assert not any(piece.overlaps for piece in found)
    assert [round(p.start, 1) for p in found] == [0, 2.8, 9.8]
    assert [round(len(p.audio) / RATE, 1) for p in found] == [2.2, 2.4, 3.4]
    assert PAUSE < 1
    assert MARGIN == 0.2


def test_without_a_pause_pieces_overlap_at_the_quietest_place():
    audio = recording([(20, 0)])
    audio[2600:2700] = 1  # still speech, but faint
    found = pieces(audio, 4.0)
    assert all(piece.overlaps for piece in found[1:])
    middle = (found[1].start + len(found[0].audio) / RATE) / 2
    assert middle == pytest.approx(2.65, abs=0.05)


def test_a_short_recording_is_one_piece_without_silence_around_it():
    (piece,) = pieces(recording([(0.5, 2)]), 3.2)
    assert (piece.start, piece.covered) == (0.0, 2.5)
    assert len(piece.audio) / RATE == pytest.approx(0.5 + MARGIN, abs=WINDOW_SECONDS)
    (piece,) = pieces(recording([(0, 9), (1, 0.5), (1, 3)]), 17.2)
    assert piece.start == pytest.approx(9 - MARGIN, abs=WINDOW_SECONDS)
    assert len(piece.audio) / RATE == pytest.approx(2.5 + 2 * MARGIN, abs=2 * WINDOW_SECONDS)
    assert piece.covered == pytest.approx(14.5)
    assert pieces(np.zeros(100_000, np.int16), 3.2) == []
    assert pieces(np.zeros(0, np.int16), 3.2) == []


def test_halves_share_their_overlap_and_end():
    piece = Chunk(5.0, recording([(3, 0)]), 4.0)
    left, right = halves(piece, RATE, 3.2)
    assert right.overlaps
    assert left.covered + right.covered == 4.0
    shared = left.start + len(left.audio) / RATE - right.start
    assert shared == pytest.approx(overlap(3.2), abs=0.01)
    assert len(right.audio) / RATE + right.start == pytest.approx(8.0)
    depth = 0
    while parts := halves(piece, RATE, 3.2):
        piece, depth = parts[0], depth + 1
    assert depth < 6


def test_the_detector_hears_speech_and_not_silence_or_hum():
    from mtp_jax.data import espeak

    speech = espeak.speak("the quick brown fox jumps over the lazy dog", "en-us", 150)
    rng = np.random.default_rng(0)
    second = np.arange(espeak.SAMPLE_RATE * 2) / espeak.SAMPLE_RATE
    hum = (3000 * np.sin(2 * np.pi * 50 * second) + rng.normal(0, 30, len(second))).astype(np.int16)
    for audio, scored in ((speech.waveform, True), (hum, False), (hum * 0, False)):
        with VoiceActivity(espeak.SAMPLE_RATE) as voice:
            found = np.concatenate([voice.feed(part) for part in np.array_split(audio, 7)])
        assert len(found) == pytest.approx(len(audio) / espeak.SAMPLE_RATE / WINDOW_SECONDS, abs=3)
        assert (np.mean(found > 0.5) > 0.6) == scored
        assert scored or found.max() < 0.2


words = st.lists(
    st.tuples(st.sampled_from(["a", "no", "ten", "far"]), st.floats(0.05, 0.6)), max_size=30
)


@settings
@hypothesis.given(words, st.floats(0.5, 8), st.floats(0.2, 1.0), st.floats(-0.1, 0.1))
def test_words_of_an_overlap_are_taken_once(drawn, middle, shared, late):
    said, at = [], 0.0
    for text, length in drawn:
        said.append(Word(text, at, at + length, 1.0))
        at += length
    start, stop = middle - shared / 2, middle + shared / 2
    left = [w for w in said if w.end <= stop]
    right = [w._replace(start=w.start + late, end=w.end + late) for w in said if w.start >= start]
    # A word longer than the overlap may be whole in neither piece; the others are in one at least.
    hypothesis.assume(all(w.end <= stop or w.start >= start for w in said))
    # The same word twice within half a second cannot be told from the same word scored once.
    hypothesis.assume(
        all(
            a.text != b.text or abs(b.start + b.end - a.start - a.end) > 1.4
            for i, a in enumerate(said)
            for b in said[:i]
        )
    )
    hypothesis.assume(all(abs((w.start + w.end) / 2 - middle) > 0.15 for w in said))
    keep, drop = resolve_overlap(left, right, start, stop)
    joined = [w.text for w in [*left[:keep], *right[drop:]]]
    assert joined == [w.text for w in said]
    first = Segment(0.0, stop, tuple(left), (), 1)
    second = Segment(start, max(stop, at + 1), tuple(right), (), 1)
    first, second = stitch(first, second)
    assert [w.text for w in [*first.words, *second.words]] == joined
    assert start <= first.end == second.start <= stop
    for segment in (first, second):
        times = [segment.start, *(t for w in segment.words for t in (w.start, w.end)), segment.end]
        assert times == sorted(times)


def test_segments_that_do_not_overlap_stay_as_they_are():
    left, right = (Segment(t, t + 1, (Word("a", t, t + 1, 1.0),), (), 1) for t in (0.0, 1.0))
    assert stitch(left, right) == (left, right)


def test_where_pieces_agree_on_a_word_a_garbled_one_beside_it_is_dropped():
    left = [Word("we", 0, 0.4, 1), Word("went", 0.4, 0.9, 1), Word("ho", 0.9, 1.0, 1)]
    right = [Word("ent", 0.5, 0.9, 1), Word("went", 0.45, 0.9, 1), Word("home", 0.9, 1.4, 1)]
    keep, drop = resolve_overlap(left, right, 0.5, 1.0)
    assert [w.text for w in [*left[:keep], *right[drop:]]] == ["we", "went", "home"]


@settings
@hypothesis.given(st.lists(st.integers(0, 2), max_size=24))
def test_a_loop_is_found_where_there_is_one(tokens):
    def is_run(start: int, period: int) -> bool:
        part = tokens[start : start + COPIES * period]
        return len(part) == COPIES * period and part == part[:period] * COPIES

    every = [
        (start, period)
        for start in range(len(tokens))
        for period in range(1, len(tokens) // COPIES + 1)
        if is_run(start, period)
    ]
    found = find_repetition(tokens)
    assert (found is None) == (not every)
    if found:
        assert (found.start, found.period) == min(every)
        for i in range(found.start + found.period, found.stop):
            assert tokens[i] == tokens[i - found.period]


def test_a_loop_is_cut_to_the_copies_that_were_said():
    tokens = [7, *[1, 2] * 9, 1, 8, *[3] * 5]

    def said(copies: int, threes: int):
        truth = [7, *[1, 2] * copies, 8, *[3] * threes]
        return lambda text: -abs(text.count(1) - truth.count(1)) - abs(text.count(3) - threes)

    kept, cut_ = trim_repetitions(tokens, said(2, 1))
    assert [tokens[i] for i in kept] == [7, 1, 2, 1, 2, 8, 3]
    assert cut_
    kept, cut_ = trim_repetitions(tokens, lambda text: len(text))  # all of it was said
    assert kept == list(range(len(tokens)))
    assert not cut_
