"""Live captions: what stays is the text of the same stretches at once, however the audio came."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time

import numpy as np
import pytest

from mtp_jax.audio.live_segmentation import Stretch
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.transcription.agreement import Agreement, behind
from mtp_jax.transcription.batching import hand_out
from mtp_jax.transcription.live import LiveSession
from mtp_jax.transcription.live_events import Caption, Ended, Started
from mtp_jax.transcription.live_model import live_fields, live_segmenter
from mtp_jax.transcription.live_stream import transcribe_live
from mtp_jax.transcription.previous_text import is_sane
from mtp_jax.transcription.recordings import Recording
from mtp_jax.transcription.results import Segment, Token, Transcript, Word
from mtp_jax.transcription.transcriber import PREVIOUS_TOKENS, Transcriber
from tests.pretrained import GOLDEN_WHISPER
from tests.recordings import RATE


def words(text: str, seconds: float = 0.4, start: float = 0.0) -> tuple[Word, ...]:
    """Of a text, one behind another."""
    return tuple(
        Word(word, start + i * seconds, start + (i + 1) * seconds, 0.9)
        for i, word in enumerate(text.split())
    )


def segment(text: str, start: float = 0.0, confidence: float = 0.9, **fields) -> Segment:
    """Whose tokens are its words; a word has the same number everywhere."""
    said = words(text, start=start)
    tokens = [
        Token(hash(word.text) % 1000, f" {word.text}", 1, confidence, i)
        for i, word in enumerate(said)
    ]
    end = Token(2, "", 1, 0.9, -1)
    return Segment(start, start + 9.0, said, (*tokens, end), decoder_calls=3, **fields)


def text(said) -> str:
    return " ".join(word.text for word in said)


# ---- Agreement


def test_words_that_two_hypotheses_have_are_committed():
    agreement = Agreement(guard=0.5)
    agreement.add(words("the cat sat"), audio_end=1.3)
    assert (text(agreement.committed), text(agreement.open)) == ("", "the cat sat")
    agreement.add(words("the cat sang a"), audio_end=1.7)
    assert (text(agreement.committed), text(agreement.open)) == ("the cat", "sang a")
    agreement.add(words("the cat sang a song"), audio_end=1.9)
    # "a" ends at 1.6: too little was heard behind it.
    assert (text(agreement.committed), text(agreement.open)) == ("the cat sang", "a song")


def test_what_is_committed_stays_and_the_rest_is_put_behind_it():
    agreement = Agreement(guard=0.0)
    for said in ("he said so and", "he said so and", "she said so too", "he says it so and now"):
        agreement.add(words(said), audio_end=9.0)
    assert text(agreement.committed) == "he said so and"
    assert text(agreement.open) == "now"


@pytest.mark.parametrize(
    ("known", "said", "count"),
    [
        ("", "a b", 0),
        ("a b", "a b c", 2),
        ("a b", "b c", 1),
        ("a b", "x a b c", 3),
        ("a b", "x y z", 2),
        ("a b c", "a", 1),
    ],
)
def test_the_nearest_beginning_is_what_is_known(known, said, count):
    assert behind(words(known), words(said)) == count


# ---- A session without a model


class Played:
    """A session whose hypotheses a test makes up.

    Args:
        fields: of the session.
    """

    def __init__(self, **fields) -> None:
        self.events: list = []
        given = {"start": lambda previous: (1,), "emit": self.events.append, "sample_rate": 100}
        self.session = LiveSession(**(given | fields))

    def stretch(self, seconds: float, number: int = 0, start: float = 0.0) -> Stretch:
        return Stretch(number, start, np.zeros(round(seconds * 100), np.int16))

    def hears(self, seconds: float, now: float | None = None, closed=(), **fields) -> None:
        self.session.update(closed, self.stretch(seconds, **fields), now or seconds)

    def says(self, *segments: Segment) -> list[Chunk]:
        """What waits is decoded, in a batch of its own each; the chunks."""
        chunks = []
        for said in segments:
            item = self.session.waiting.popleft()
            chunks.append(item.chunk)
            hand_out([(self.session, item)], [said], 1.0, 100, 30.0)
        return chunks

    @property
    def captions(self) -> list[Caption]:
        return [event for event in self.events if isinstance(event, Caption)]


def test_one_hypothesis_waits_and_it_is_of_all_that_was_heard():
    played = Played(step=0.5)
    played.hears(0.3)
    assert not played.session.waiting
    played.hears(0.6)
    (first,) = played.session.waiting
    played.hears(0.7)
    (item,) = played.session.waiting
    assert len(item.chunk.audio) == 70 and item.since == first.since
    played.session.waiting.popleft()  # it is being decoded
    played.hears(2.0)
    assert not played.session.waiting
    hand_out([(played.session, item)], [segment("he")], 1.0, 100, 30.0)
    (item,) = played.session.waiting
    assert len(item.chunk.audio) == 200
    assert [type(event) for event in played.events] == [Started, Caption]


def test_the_last_hypothesis_is_the_draft_of_the_next_and_of_what_stays():
    played = Played()
    played.hears(1.0)
    (first,) = played.says(segment("he says"))
    assert first.draft == ()
    played.hears(2.0)
    (second,) = played.says(segment("he said so"))
    said = tuple(token.id for token in segment("he says").tokens[:-1])
    assert second.draft == said
    played.session.update([played.stretch(2.2)], None, 3.0)
    (last,) = played.says(segment("he said so."))
    assert last.draft == tuple(token.id for token in segment("he said so").tokens[:-1])
    assert played.captions[-1].final and played.captions[-1].text == "he said so."
    played.hears(1.0, now=4.0, number=1, start=3.0)
    assert played.says(segment("And"))[0].draft == ()
    plain = Played(drafts=False)
    plain.hears(1.0)
    assert plain.says(segment("he"))[0].draft is None


def test_what_was_decoded_whole_is_not_decoded_again():
    played = Played()
    played.hears(1.0, now=1.3)  # a pause has begun: what it closes is known
    played.says(segment("he said"))
    played.hears(1.0, now=1.6)
    assert not played.session.waiting
    played.session.update([played.stretch(1.0)], None, 1.9)
    assert not played.session.waiting
    assert played.captions[-1].final and played.captions[-1].text == "he said"
    played.session.all_read()
    transcript = played.events[-1]
    assert isinstance(transcript, Transcript) and transcript.text == "he said"
    assert transcript.decoder_calls == 3 and transcript.audio_seconds == 1.9


def test_stretches_are_settled_in_order_and_the_transcript_holds_them():
    played = Played(start=lambda previous: (1, len(previous)) if previous else (1,))
    closed = [played.stretch(1.0), played.stretch(2.0, 1, 2.0), played.stretch(1.0, 2, 5.0)]
    played.session.update(closed, None, 6.5)
    played.session.all_read()
    assert len(played.session.waiting) == 1 and played.session.behind == 3
    chunks = played.says(segment("he said"), segment("so it", 2.0), segment("goes", 5.0))
    assert [chunk.start_tokens for chunk in chunks] == [(1,), (1, 7), (1, 13)]
    assert played.events[-1].text == "he said so it goes"
    assert [c.number for c in played.captions if c.final] == [0, 1, 2]
    kinds = [type(event) for event in played.events]
    assert kinds[:6] == [Started, Ended] * 3
    played.session.update([played.stretch(1.0, 3)], None, 9.0)  # nobody listens any more
    assert kinds == [type(event) for event in played.events]


NONSENSE = {
    "repeats itself": segment("so it goes " * 20),
    "has no end": segment("he said", complete=False),
    "loops": segment("he said", looped=True),
    "is unlikely": segment("he said", confidence=0.1),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_not_told_to_what_follows(kind):
    """Neither it nor what was said before it."""
    assert not is_sane([NONSENSE[kind]])
    played = Played(start=lambda previous: (1, len(previous)) if previous else (1,))
    stretches = [played.stretch(0.5, i, float(i)) for i in range(4)]
    played.session.update(stretches, None, 9.0)
    played.says(segment("so it goes"))
    (told,) = played.says(NONSENSE[kind])
    assert len(told.start_tokens) == 2
    if "no end" in kind or "loops" in kind:  # once more, alone
        (again,) = played.says(NONSENSE[kind])
        assert again.start_tokens == (1,)
    chunks = played.says(segment("well"), segment("then"))
    assert [chunk.start_tokens for chunk in chunks] == [(1,), (1, 4)]


def test_a_hypothesis_without_an_end_is_not_shown():
    played = Played()
    played.hears(1.0)
    played.says(segment("he said"))
    played.hears(20.0)
    played.says(segment("he he he", complete=False))
    assert [caption.text for caption in played.captions] == ["he said"]
    assert not played.session.waiting
    played.hears(21.0)
    (chunk,) = played.says(segment("he said so"))
    assert len(chunk.draft) == 2 and played.captions[-1].text == "he said so"


def test_a_long_text_without_an_end_is_decoded_in_halves():
    played = Played()
    played.session.update([played.stretch(20.0)], None, 21.0)
    played.says(segment("he he he", complete=False))
    assert len(played.session.waiting) == 2
    assert all(item.chunk.draft == () for item in played.session.waiting)
    played.says(segment("he said"), segment("so", 10.0))
    assert [caption.text for caption in played.captions] == ["he said so"]


def test_a_session_that_fails_says_so_once():
    played = Played()
    played.hears(1.0)
    played.session.fail(RuntimeError("gone"))
    played.hears(5.0)
    played.session.all_read()
    assert [str(e) for e in played.events if isinstance(e, Exception)] == ["gone"]
    assert not played.session.waiting


# ---- With models


class Sure(Transcriber):
    """A model whose texts all have an end, whatever it says: a tiny one mostly repeats itself."""

    @classmethod
    def of(cls, model: Transcriber) -> Sure:
        return cls(model.runner, model.tau, model.calibration, model.batch_size)

    def decode(self, chunks, strategy="auto"):
        found = super().decode(chunks, strategy)
        return [dataclasses.replace(s, complete=True, looped=False) for s in found]


def play(model: Transcriber, audio: np.ndarray, sizes, **fields) -> tuple[list, LiveSession]:
    """Events of audio that comes in pieces of these sizes, a decode behind each."""
    events: list = []
    own = {name: fields.pop(name) for name in ("step", "guard") if name in fields}
    session = LiveSession(emit=events.append, **own, **live_fields(model, **fields))

    def decode() -> None:
        if session.waiting:
            item = session.waiting.popleft()
            segments = model.decode([item.chunk], fields.get("strategy", "auto"))
            hand_out([(session, item)], segments, 0.0, model.sample_rate, model.longest)

    at = 0
    with live_segmenter(model) as segmenter:
        for size in itertools.cycle(sizes):
            piece = audio[at : at + size]
            at += len(piece)
            session.update(segmenter.feed(piece), segmenter.open(), segmenter.seconds)
            decode()
            if at >= len(audio):
                break
        session.update(segmenter.finish(), None, segmenter.seconds)
    session.all_read()
    while not session.over:
        decode()
    return events, session


def stretches(model: Transcriber, audio: np.ndarray) -> list[Stretch]:
    with live_segmenter(model) as segmenter:
        return segmenter.feed(audio) + segmenter.finish()


def at_once(model: Transcriber, audio: np.ndarray, **fields) -> list[str]:
    """Texts of the same stretches, none of which had a hypothesis."""
    events, _ = play(model, audio, [len(audio)], **fields)
    finals = [event for event in events if isinstance(event, Caption)]
    assert all(caption.final for caption in finals)
    return [caption.text for caption in finals]


def recorded(model: Transcriber, stretch: Stretch) -> str:
    """Its text as that of a recording of its own."""
    recording = Recording()
    recording.add(Chunk(stretch.start, stretch.audio, 1.0))
    recording.all_read()
    while not recording.over:
        item = recording.waiting.popleft()
        segments = model.decode([item.chunk])
        hand_out([(recording, item)], segments, 0.0, model.sample_rate, model.longest)
    return recording.outcome.text


@pytest.fixture(scope="module")
def said(waves) -> np.ndarray:
    pause = np.zeros(RATE, np.int16)
    return np.concatenate([waves[0], pause, waves[1], pause, waves[2]])


def test_the_text_is_that_of_the_same_stretches_at_once(model, said):
    expected = [recorded(model, stretch) for stretch in stretches(model, said)]
    assert at_once(model, said) == expected and len(expected) >= 3
    for sizes in ([1600], [777, 9000], [len(said)]):
        events, session = play(model, said, sizes)
        finals = [e for e in events if isinstance(e, Caption) and e.final]
        assert [caption.text for caption in finals] == expected
        assert session.outcome.text == " ".join(t for t in expected if t) == events[-1].text
        assert session.outcome.audio_seconds == pytest.approx(len(said) / RATE)
    assert session.calls == session.outcome.decoder_calls
    sure = Sure.of(model)
    expected = at_once(sure, said)
    for sizes in ([1600], [777, 9000]):
        events, session = play(sure, said, sizes)
        captions = [e for e in events if isinstance(e, Caption)]
        assert [caption.text for caption in captions if caption.final] == expected
        assert any(caption.open for caption in captions)
        assert captions[-1].calls <= session.calls


@pytest.fixture(scope="module")
def whisper() -> Transcriber:
    """It takes a prompt, and no text of its full window is decoded again."""
    return Transcriber(load(open_model_folder(GOLDEN_WHISPER), silence=30.0), batch_size=2)


def test_a_whisper_says_the_same_with_drafts_and_prompts(whisper, said):
    audio = said[: 2 * RATE]
    expected = at_once(whisper, audio)
    for sizes in ([1600], [700, 9000]):
        events, _ = play(whisper, audio, sizes, step=0.1)
        finals = [e.text for e in events if isinstance(e, Caption) and e.final]
        assert finals == expected
    assert any(e.open for e in events if isinstance(e, Caption))
    assert at_once(whisper, audio, strategy="greedy") == expected


def test_a_draft_of_any_kind_leaves_the_text_alone(whisper, said):
    """Nonsense, half of the text, more than the text, and rows without a draft beside them."""
    cut = [s for s in stretches(whisper, said) if len(s.audio) > 1000][:2]
    chunks = [Chunk(s.start, s.audio, 0.4) for s in cut]
    plain = whisper.decode(chunks, "greedy")
    own = [tuple(token.id for token in s.tokens if token.word >= 0) for s in plain]
    for drafts in (
        [(), ()],
        [(5, 6, 7), None],
        [own[0][:3], own[1] + own[1]],
        [own[0], own[1]],
        [(4,) * 1000, ()],
    ):
        drafted = [c._replace(draft=d) for c, d in zip(chunks, drafts, strict=True)]
        found = whisper.decode(drafted)
        assert [s.text for s in found] == [s.text for s in plain]
    assert all(s.decoder_calls <= p.decoder_calls for s, p in zip(found, plain, strict=True))


def test_what_was_said_before_is_told_within_a_step_of_tokens(whisper):
    tell = functools.partial(whisper.start_tokens, "en", "transcribe")
    special = whisper.runner.model.vocabulary.whisper
    assert tell("", previous="") == tell("")
    few = tell("", previous="the and")
    assert few == (special.previous, *whisper.runner.tokenizer.encode(" the and"), *tell(""))
    many = tell("", previous="the and " * 100)
    most = min(PREVIOUS_TOKENS, whisper.runner.model.config.whisper_decoder.positions // 2 - 1)
    assert len(many) == 1 + most + len(tell(""))
    both = tell("and the", previous="the and " * 100)
    asked = whisper.runner.tokenizer.encode(" and the")
    assert both[1 : 1 + len(asked)] == tuple(asked) and len(both) == len(many)


def test_a_speech_llama_is_told_nothing(model):
    session = LiveSession(**live_fields(model))
    assert session.start("what was said before") == ()


def test_a_listener_hears_events_as_they_happen(model, said):
    def blocks():
        for at in range(0, len(said), 4000):
            yield said[at : at + 4000]
            time.sleep(0.01)

    events = list(transcribe_live(model, blocks()))
    finals = [event.text for event in events if isinstance(event, Caption) and event.final]
    assert finals == at_once(model, said)
    assert isinstance(events[-1], Transcript)
    broken = transcribe_live(model, itertools.chain([said[: 2 * RATE]], failing()))
    heard = []
    with pytest.raises(OSError, match="the cable"):
        heard.extend(broken)
    *_, last = transcribe_live(model, iter([]))
    assert last.text == "" and last.audio_seconds == 0


def failing():
    raise OSError("the cable")
    yield


def test_a_transcript_keeps_its_segments(model, said):
    events, session = play(model, said, [3000])
    finals = [e for e in events if isinstance(e, Caption) and e.final]
    parts = [part for caption in finals for part in caption.segments]
    assert tuple(parts) == session.outcome.segments
    ends = [(e.number, e.at) for e in events if isinstance(e, Ended)]
    begins = [(e.number, e.at) for e in events if isinstance(e, Started)]
    assert [n for n, _ in ends] == [n for n, _ in begins] == list(range(len(finals)))
    assert dataclasses.asdict(events[0]) == {"number": 0, "at": begins[0][1]}
