"""Word times by attention: planted weights give planted times, and blocks change nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.decoding import Decoded
from mtp_jax.inference import decoder_functions
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.programs import Inference
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.transcription.attention_times import align_attention, silent_frames, until_silence
from mtp_jax.transcription.spelling import Spelled
from mtp_jax.transcription.word_times import AttentionAligner, Text
from tests.pretrained import GOLDEN_WHISPER as FOLDER

RATE, FRAME = 16_000, 320


@pytest.fixture(scope="module")
def aligner():
    return AttentionAligner(open_model_folder(FOLDER).read_config())


def weights_of(spans, frames):
    """float[L, T] of tokens that are attended in the frames of their spans."""
    weights = np.full((len(spans), frames), 1e-4)
    for token, (first, stop) in enumerate(spans):
        weights[token, first:stop] = 1 / (stop - first)
    return weights


def sound(spoken, frames, noise=0.0):
    """int16[T], loud in the frames of some spans."""
    draw = np.random.default_rng(0)
    audio = draw.normal(scale=noise, size=frames * FRAME)
    for first, stop in spoken:
        audio[first * FRAME : stop * FRAME] += draw.normal(scale=3000, size=(stop - first) * FRAME)
    return audio.astype(np.int16)


def text(*tokens):
    """Of what each adds, where a space begins a word."""
    words = "".join(tokens).split()
    starts = [token.startswith(" ") for token in tokens]
    word = np.cumsum(starts) - 1
    places = list(range(len(tokens)))
    return Text(places, Spelled(words, list(tokens), word.tolist()), places, False)


def times(aligner, said, weights, audio):
    length = np.array([len(weights)])
    decoded = Decoded(**{f.name: None for f in dataclasses.fields(Decoded)} | {"length": length})
    inference = Inference(decoded=decoded, frames=length, attention=weights[None])
    (found,) = aligner.times(inference, [said], [audio])
    return None if found is None else np.rint(found.spans / 0.02).astype(int).tolist()


def test_planted_attention_gives_planted_times(aligner):
    """A pause belongs to no word, though the comma is attended there."""
    spans = [(5, 12), (12, 20), (20, 26), (26, 40), (40, 50)]  # one, two, comma, three, EOS
    audio = sound([(5, 20), (30, 40)], 50)
    found = times(aligner, text(" one", " two", ",", " three"), weights_of(spans, 50), audio)
    assert found == [[5, 12], [12, 20], [30, 40]]


def test_a_word_goes_on_until_the_silence_behind_it(aligner):
    """EOS and the comma are attended before their words have ended."""
    spans = [(5, 14), (14, 26), (26, 35), (35, 50)]
    audio = sound([(5, 20), (26, 40)], 50)
    found = times(aligner, text(" one", ",", " two"), weights_of(spans, 50), audio)
    assert found == [[5, 20], [26, 40]]


@pytest.mark.parametrize(("sign", "end"), [("%", 20), ("!", 12)])
def test_signs_that_are_said_belong_to_their_words(aligner, sign, end):
    spans = [(0, 12), (12, 20), (20, 30), (30, 40)]
    audio = sound([(0, 40)], 40)  # no silence tells
    found = times(aligner, text(" five", sign, " two"), weights_of(spans, 40), audio)
    assert found == [[0, end], [20, 30]]


def test_heads_that_are_early_are_waited_for():
    weights = weights_of([(0, 10), (10, 30), (30, 40)], 40)
    for early in (-3, 0, 4):
        path = align_attention(weights, np.zeros(40, bool), early)
        assert path.first.tolist() == [0, 10 + early, 30 + early]


@pytest.mark.parametrize("seed", range(8))
def test_times_are_in_order_and_within_the_audio(aligner, seed):
    """Whatever the weights, the pauses and the words."""
    draw = np.random.default_rng(seed)
    frames = int(draw.integers(12, 80))
    said = text(" a", *draw.choice([" b", "c", ",", " ...", " \u00bf", "."], size=8).tolist())
    edges = np.sort(draw.choice(frames, 4, replace=False))
    audio = sound([edges[:2], edges[2:]], frames)[: frames * FRAME - int(draw.integers(FRAME))]
    found = times(aligner, said, draw.dirichlet(np.full(frames, 0.1), size=10), audio)
    flat = np.array(found).ravel()
    assert len(found) == len(said.spelled.words)
    assert (np.diff(flat) >= 0).all() and flat[0] >= 0 and flat[-1] <= frames


def test_a_text_that_the_audio_has_no_room_for_has_no_times(aligner):
    assert times(aligner, text(" a", " b"), np.full((3, 9), 1 / 9), sound([(0, 2)], 2)) is None


def test_silence_is_where_nobody_speaks():
    audio = sound([(10, 30), (45, 60)], 70, noise=10)
    expected = np.ones(70, bool)
    expected[10:30] = expected[45:60] = False
    np.testing.assert_array_equal(silent_frames(audio, RATE), expected)
    assert not silent_frames(sound([(10, 30)], 50, noise=200), RATE).any()  # noise hides it
    assert not silent_frames(np.zeros(3200, np.int16), RATE).any()
    assert silent_frames(np.zeros(0, np.int16), RATE).shape == (0,)


def test_a_far_silence_ends_no_word():
    silent = np.arange(40) >= 30
    assert until_silence(25, silent) == 30 and until_silence(10, silent) == 10
    assert until_silence(35, silent) == 35 and until_silence(40, silent) == 40


@pytest.mark.parametrize("size", [4, 8, 32])
def test_blocks_find_the_attention_of_the_whole_text(monkeypatch, size):
    """Texts of different length, one behind a prompt; what is behind the last block is 0."""
    monkeypatch.setattr(decoder_functions, "ATTENTION_BLOCK", size)
    runner = load(open_model_folder(FOLDER))
    model, params = runner.model, runner.params
    special, draw = model.vocabulary.whisper, np.random.default_rng(0)
    usual, prompt = special.start_tokens("de"), special.start_tokens("de", earlier=(5, 6, 7))
    start = np.full((2, len(prompt)), -1, np.int32)
    start[0, -len(usual) :], start[1] = usual, prompt
    features = draw.normal(size=(2, 30, model.config.whisper.width)).astype(np.float32)
    tokens, length = draw.integers(5, 40, size=(2, 24)).astype(np.int32), np.array([3, 14])

    @jax.jit
    def both(params):
        encoded = call(Recogniser.encode, model, params, features, jnp.array([30, 21]))
        encoded = dataclasses.replace(encoded, start=jnp.asarray(start))
        found = decoder_functions.attention(model, params, encoded, tokens, jnp.asarray(length))
        whole = np.concatenate([start, tokens], axis=1)
        behind = np.arange(24) < length[:, None]
        real = np.concatenate([start >= 0, behind], axis=1)
        cache = call(Recogniser.cache, model, params, encoded, whole.shape[1])
        args = np.maximum(whole, 0), real, cache
        expected, _ = call(WhisperRecogniser.attention, model, params, *args)
        return found, expected

    found, expected = both(params)
    first = start.shape[1] - 1
    for row, count in enumerate(length):
        np.testing.assert_allclose(
            found[row, :count], expected[row, first : first + count], rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(jnp.sum(found[row, :count], axis=-1), 1, rtol=1e-5)
    assert not np.any(found[1, :, 21:])  # padding
    fed = -(-(first + 14) // size) * size  # positions of the prompt and the longest text
    assert not np.any(found[:, fed - first :])
