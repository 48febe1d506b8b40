"""A context is no text: what a model writes of it where nobody speaks is taken back."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.transcription.results import Segment, Word
from mtp_jax.transcription.transcriber import Transcriber
from mtp_jax.transcription.unspoken_context import has_words_of
from tests.speech_llms import golden_runner

CONTEXT = "the and that"


@pytest.fixture(scope="module")
def model():
    return Transcriber(golden_runner("qwen3_asr"))


@pytest.fixture
def decoded(model, monkeypatch):
    """What the model is asked to decode, told a context or not, and what it then writes."""
    asked, written = [], {}
    prompt = model.runner.model.vocabulary.speech

    def decode(chunks, strategy):
        told = [bool(prompt.context_in(chunk.start_tokens)) for chunk in chunks]
        asked.append(told)
        texts = [written[chunk.start, is_told] for chunk, is_told in zip(chunks, told, strict=True)]
        words = [tuple(Word(word, 0.0, 1.0, 1.0) for word in text.split()) for text in texts]
        return [Segment(0.0, 1.0, said, (), decoder_calls=5, proposed=2) for said in words]

    monkeypatch.setattr(model, "_decode", decode)
    return asked, written


def chunk(model, at: float, context: str = CONTEXT) -> Chunk:
    start = model.start_tokens("de", "transcribe", context)
    return Chunk(at, np.zeros(9, np.int16), 1.0, start_tokens=start)


def test_a_context_that_nobody_said_is_no_text(model, decoded):
    asked, written = decoded
    written |= {(0.0, True): "The and.", (0.0, False): ""}
    (segment,) = model.decode([chunk(model, 0.0)])
    assert (segment.text, segment.decoder_calls, segment.proposed) == ("", 10, 4)
    assert asked == [[True], [False]]


def test_words_of_the_context_that_were_said_stay(model, decoded):
    _, written = decoded
    written |= {(0.0, True): "The, that", (0.0, False): "Da dat"}
    (segment,) = model.decode([chunk(model, 0.0)])
    assert (segment.text, segment.decoder_calls) == ("The, that", 10)


def test_only_what_has_no_word_of_its_own_is_decoded_again(model, decoded):
    asked, written = decoded
    written |= {(0.0, True): "that hand", (1.0, False): "the", (2.0, True): "", (3.0, True): "and"}
    written |= {(3.0, False): "end"}
    chunks = [chunk(model, 0.0), chunk(model, 1.0, ""), chunk(model, 2.0), chunk(model, 3.0)]
    texts = [segment.text for segment in model.decode(chunks)]
    assert texts == ["that hand", "the", "", "and"]
    assert asked == [[True, False, True, True], [False]]


def test_a_language_is_told_with_and_without_a_context(model):
    prompt = model.runner.model.vocabulary.speech
    told = model.start_tokens("de", "transcribe", CONTEXT)
    assert prompt.without_context(told) == model.start_tokens("de", "transcribe", "")
    assert model.runner.tokenizer.decode(prompt.context_in(told)) == CONTEXT
    assert prompt.context_in(()) == prompt.context_in(prompt.without_context(told)) == ()


def test_silence_has_no_text_whatever_is_expected(model):
    assert model.transcribe(np.zeros(16_000 * 3, np.int16), rate=16_000, prompt=CONTEXT).text == ""


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [("", "a b", False), ("A, b!", "b a", True), ("a c", "a b", False), ("...", "a", False)],
)
def test_words_are_compared_without_marks_and_capitals(text, context, expected):
    assert has_words_of(text, context) == expected
