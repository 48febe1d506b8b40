"""Which chunks share a batch, and what each recording gets of it: laws of the one scheduler."""

from __future__ import annotations

import doctest

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.transcription import batching
from mtp_jax.transcription.batching import choose, hand_out
from mtp_jax.transcription.recordings import Recording, Waiting
from mtp_jax.transcription.results import Segment, Transcript, Word
from tests.recordings import RATE

settings = hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=70)
sizes = st.sampled_from([(1,), (1, 4), (1, 4, 16), (1, 2)])


def test_docstring_examples():
    failed, tried = doctest.testmod(batching)
    assert tried > 0 and failed == 0


@settings
@hypothesis.given(lengths, sizes)
def test_a_batch_holds_who_has_waited_longest_and_is_at_least_half_full(lengths, sizes):
    waiting = list(enumerate(lengths))
    batch = choose(waiting, lambda item: item[1], sizes)
    assert waiting[0] in batch
    rows = min(size for size in sizes if size >= len(batch))
    assert rows <= 2 * len(batch)
    assert batch == sorted(batch, key=lambda item: (item[1], item[0]))


@settings
@hypothesis.given(lengths, sizes)
def test_batches_are_neighbours_in_length(lengths, sizes):
    """No chunk that stays behind lies between two that are taken together."""
    waiting = list(enumerate(lengths))
    while waiting:
        batch = choose(waiting, lambda item: item[1], sizes)
        rest = [item for item in waiting if item not in batch]
        assert len(rest) + len(batch) == len(waiting)
        assert not any(batch[0][1] < item[1] < batch[-1][1] for item in rest)
        waiting = rest


def test_of_equals_the_earlier_turn_goes_first():
    waiting = list(enumerate([5] * 20))
    assert choose(waiting, lambda item: item[1], (1, 4, 16)) == waiting[:16]


def chunk(seconds: float, start: float = 0.0, overlaps: bool = False) -> Chunk:
    return Chunk(start, np.ones(round(seconds * RATE), np.int16), seconds, overlaps)


def segment(start: float, end: float, text: str = "", complete: bool = True) -> Segment:
    words = (Word(text, start, end, 1.0),) if text else ()
    return Segment(start, end, words, (), 3, complete=complete)


def recording(*chunks: Chunk) -> Recording:
    made = Recording("verify")
    made.seconds = sum(chunk.covered for chunk in chunks)
    for each in chunks:
        made.add(each)
    made.all_read()
    return made


def taken(made: Recording) -> tuple[Recording, Waiting]:
    return made, made.waiting.popleft()


def test_time_is_shared_by_length_and_what_was_given_up_gets_none():
    short, long, failed = recording(chunk(1)), recording(chunk(3)), recording(chunk(4))
    batch = [taken(made) for made in (short, long, failed)]
    failed.fail(ValueError("nobody waits"))
    hand_out(batch, [segment(0, 1, "a"), segment(0, 3), segment(0, 4)], 16.0, RATE, 9.0)
    assert isinstance(failed.outcome, ValueError)
    assert (failed.decode_seconds, failed.calls) == (0.0, 0)
    for made, seconds in ((short, 2.0), (long, 6.0)):
        assert isinstance(made.outcome, Transcript)
        assert made.outcome.decode_seconds == made.decode_seconds == pytest.approx(seconds)
        assert made.outcome.decoder_calls == 3


def test_a_text_without_an_end_is_decoded_again_in_halves_before_what_follows():
    made = recording(chunk(6), chunk(1, start=8))
    first, following = taken(made), taken(made)
    made.waiting.append(following[1])  # not decoded yet
    hand_out([first], [segment(0, 6, "no end", complete=False)], 1.0, RATE, 6.0)
    assert [item.place for item in made.waiting] == [(1, 0), (1, 1), (2,)]
    assert made.waiting[1].chunk.overlaps
    assert (made.covered, made.segments, made.calls) == (0.0, [], 3)
    texts = iter(["left", "right", "after"])
    while made.waiting:
        item = taken(made)
        begin = item[1].chunk.start
        end = begin + len(item[1].chunk.audio) / RATE
        is_short = end - begin < 2  # and has no half: its text stays, end or none
        decoded = segment(begin, end, next(texts), complete=not is_short)
        hand_out([item], [decoded], 1.0, RATE, 6.0)
    assert isinstance(made.outcome, Transcript)
    assert made.outcome.text == "left right after"
    assert made.outcome.decoder_calls == 12
    assert made.covered == made.seconds == 7


def test_join_is_what_transcribing_makes_of_its_chunks(model, talk):
    chunks = list(model.chunks(talk, RATE))
    assert len(chunks) > 1
    expected = model.transcribe(talk, rate=RATE, strategy="ctc")
    joined = model.join([model.decode([each], "ctc")[0] for each in chunks], chunks)
    assert [part.text for part in joined] == [part.text for part in expected.segments]
    np.testing.assert_allclose(
        [(part.start, part.end) for part in joined],
        [(part.start, part.end) for part in expected.segments],
    )
    assert model.join([], []) == ()


def test_join_takes_a_word_of_both_chunks_once(model):
    once, twice, last = Word("a", 0.2, 0.4, 1.0), Word("b", 1.4, 1.6, 1.0), Word("c", 2.5, 2.7, 1.0)
    left, right = Segment(0, 2, (once, twice), (), 1), Segment(1, 3, (twice, last), (), 1)
    joined = model.join([left, right], [chunk(2), chunk(2, start=1, overlaps=True)])
    assert [part.text for part in joined] == ["a b", "c"]
    assert joined[0].end == joined[1].start
    apart = model.join([left, right], [chunk(2), chunk(2, start=1)])
    assert [part.text for part in apart] == ["a b", "b c"]


@settings
@hypothesis.given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_order_of_decoding_changes_nothing(order, overlaps):
    """Neighbours share a second and a word; it is said twice only where they do not overlap."""
    made = recording(*(chunk(2, i, overlap) for i, overlap in enumerate(overlaps)))
    items = list(made.waiting)
    words = [Word(name, i + 0.4, i + 0.6, 1.0) for i, name in enumerate("abcde")]
    for i in order:
        made.found(items[i], Segment(i, i + 2, (words[i], words[i + 1]), (), 1))
    seams = (
        f"{b} " if joined else f"{b} {b} " for b, joined in zip("bcd", overlaps[1:], strict=True)
    )
    assert isinstance(made.outcome, Transcript)
    assert made.outcome.text == f"a {''.join(seams)}e"
