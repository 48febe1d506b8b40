"""A whole Whisper: equal to transformers, and to itself by any route."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.data import Batch
from mtp_jax.decoding import Greedy
from mtp_jax.decoding.beam import BeamSearch
from mtp_jax.decoding.kbest import PrefixBeam
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import model_digest, open_model_folder
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.pretrained import PretrainedError
from mtp_jax.pretrained.whisper_decoder import export_whisper_decoder
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.pretrained import tensors_of, whisper_folder
from tests.whisper import decode, encoder, golden_runner, started, texts
from tests.whisper import expected as golden


@pytest.fixture(scope="module")
def runner():
    return golden_runner()


@pytest.fixture(scope="module")
def expected():
    return golden()


@pytest.fixture(scope="module")
def encode(runner):
    return encoder(runner)


def test_logits_equal_those_of_transformers(runner, expected, encode):
    encoded = started(runner, encode(), "fr")
    functions = bind_decoder(runner.model, runner.params, encoded)
    first, cache = functions.prefill(16)
    count = jnp.full(len(expected["text"]), expected["text"].shape[1])
    hidden, _ = functions.extend(jnp.asarray(expected["text"]), count, cache)
    hidden = jnp.concatenate([first[:, None], hidden], axis=1)[..., :-1]
    logits = hidden @ runner.params["decoder"]["embedding"].T
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-4)


def test_languages_equal_those_of_transformers(expected, encode):
    np.testing.assert_array_equal(encode().start[:, 1], expected["languages"])


@pytest.mark.parametrize(
    ("name", "start"),
    [("greedy", ()), ("translated", ("de", "translate", "ab"))],
)
def test_greedy_tokens_equal_those_of_transformers(runner, expected, encode, name, start):
    if start:
        start = (*start[:2], tuple(runner.tokenizer.encode(start[2])))
    encoded = started(runner, encode(), *start) if start else encode()  # in the language heard
    decoded = decode(runner, encoded, Greedy())
    np.testing.assert_array_equal(texts(decoded, runner.tokenizer.eos), expected[name])


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3), PrefixBeam(3)])
def test_a_row_decodes_as_it_does_alone(runner, encode, strategy):
    together = decode(runner, encode(), strategy)
    for row in (0, 2, 5):
        alone = decode(runner, encode(slice(row, row + 1)), strategy)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        assert together.calls[row] == alone.calls[0]
        if together.nbest is not None:
            np.testing.assert_array_equal(together.nbest.tokens[row], alone.nbest.tokens[0])


def test_frames_beyond_the_length_change_nothing(runner, expected):
    """NaN there, and any number of them."""
    features = expected["features"][:2]
    texts = []
    for padding in (0, 6):
        wide = np.pad(features[:, :30], ((0, 0), (0, padding), (0, 0)), constant_values=np.nan)
        length = jnp.full(2, 30)
        hidden = call(Recogniser.encode_speech, runner.model, runner.params, wide, length)
        hidden = jnp.where(jnp.arange(hidden.shape[1])[:, None] < 15, hidden, jnp.nan)
        encoded = call(Recogniser.encode, runner.model, runner.params, hidden, length // 2)
        encoded = call(WhisperRecogniser.detected, runner.model, runner.params, encoded)
        texts.append(decode(runner, encoded, Greedy()).tokens)
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("widths", [(1, 1, 4), (3, 2, 1), (6,)])
def test_steps_equal_the_whole_pass(runner, expected, encode, widths):
    """Prefill and calls of any width, drafts rejected between them, against no cache at all."""
    encoded, text = encode(), jnp.asarray(expected["text"])
    rows = len(text)
    functions = bind_decoder(runner.model, runner.params, encoded)
    hidden, cache = functions.prefill(16)
    parts, at = [hidden[:, None]], 0
    for width in widths:
        wrong = jnp.full((rows, 2), 3)  # fed, and taken back
        _, longer = functions.extend(wrong, jnp.full(rows, 2), cache)
        cache = longer.rollback(jnp.full(rows, 2))
        fed = text[:, at : at + width]
        hidden, cache = functions.extend(fed, jnp.full(rows, width), cache)
        parts.append(hidden)
        at += width
    stepped = jnp.concatenate(parts, axis=1)
    hidden = call(
        Recogniser.encode_speech,
        runner.model,
        runner.params,
        expected["features"],
        jnp.full(rows, expected["features"].shape[1]),
    )
    whole, _ = runner.model.apply(
        {"params": runner.params},
        hidden,
        encoded.length,
        jnp.concatenate([text, jnp.zeros((rows, 1), int)], axis=1),
        jnp.full(rows, text.shape[1] + 1),
    )
    np.testing.assert_allclose(stepped[..., :-1], whole[..., :-1], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(stepped[..., -1], whole[..., -1])


def test_the_first_token_is_none_of_those_that_may_not_be(runner, encode):
    special = runner.model.vocabulary.whisper
    functions = bind_decoder(runner.model, runner.params, encode())
    hidden, cache = functions.prefill(8)
    first = functions.next_token(hidden)
    fed = jnp.ones((len(hidden), 1), int)
    after = functions.next_token(functions.extend(fed, jnp.ones(len(hidden), int), cache)[0])
    never, never_first = list(special.suppressed), list(special.suppressed_first)
    lowest = np.finfo(np.float32).min
    assert never_first
    assert np.all(first[:, never] == lowest) and np.all(after[..., never] == lowest)
    assert np.all(first[:, never_first] == lowest) and np.all(after[..., never_first] > lowest)


@pytest.mark.parametrize("strategy", [BeamSearch(1), PrefixBeam(1, rounds=1)])
def test_a_beam_of_one_is_greedy(runner, encode, strategy):
    got, greedy = decode(runner, encode(), strategy), decode(runner, encode(), Greedy())
    np.testing.assert_array_equal(got.tokens, greedy.tokens)
    np.testing.assert_allclose(got.log_probs, greedy.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [BeamSearch(4), PrefixBeam(4, width=3)])
def test_hypotheses_have_the_probability_that_their_tokens_have(runner, encode, strategy):
    """They share the audio's keys and values; each is scored again in a row of its own.

    No two are alike, and the likeliest stands first.
    """
    encoded = encode(slice(0, 2))
    decoded = decode(runner, encoded, strategy, limit=6)
    nbest = decoded.nbest
    assert nbest.real.all()
    np.testing.assert_array_equal(nbest.tokens[:, 0], decoded.tokens)
    total = np.asarray(jnp.sum(nbest.log_probs, axis=2))
    assert np.all(total[:, :-1] >= total[:, 1:])
    for row in range(2):
        assert len({tuple(text) for text in np.asarray(nbest.tokens[row])}) == 4
    for k in range(4):
        functions = bind_decoder(runner.model, runner.params, encoded)
        hidden, cache = functions.prefill(8)
        tokens, length = nbest.tokens[:, k], nbest.length[:, k]
        behind, _ = functions.extend(tokens, length, cache)
        logits = functions.next_token(jnp.concatenate([hidden[:, None], behind[:, :-1]], axis=1))
        scored = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        real = (jnp.arange(6) < length[:, None]) & nbest.real[:, k, None]
        np.testing.assert_allclose(
            jnp.where(real, scored, 0), jnp.where(real, nbest.log_probs[:, k], 0), atol=1e-4
        )


def test_that_nobody_speaks_is_as_likely_as_the_token_that_says_so(runner, encode):
    special, encoded = runner.model.vocabulary.whisper, encode()
    first = jnp.full((len(encoded.audio), 1), special.start)
    told = dataclasses.replace(encoded, start=first)
    hidden, _ = bind_decoder(runner.model, runner.params, told).prefill(1)
    logits = hidden[:, :-1] @ runner.params["decoder"]["embedding"].T
    found = call(WhisperRecogniser.no_speech, runner.model, runner.params, encoded)
    np.testing.assert_allclose(found, jax.nn.softmax(logits)[:, special.no_speech], rtol=1e-4)


def test_a_folder_decodes_waveforms(runner):
    """In windows that the silence behind them fills; a batch decodes as its rows do."""
    rng = np.random.default_rng(0)
    audio = rng.normal(scale=3000, size=(3, 6000)).astype(np.int16)
    length = np.array([6000, 2500, 4000], np.int32)

    def batch(rows):
        return Batch(
            audio=audio[rows],
            audio_length=length[rows],
            tokens=np.zeros((len(rows), 0), np.int32),
            token_length=np.zeros(len(rows), np.int32),
            index=np.arange(len(rows), dtype=np.int32),
        )

    together = runner.run(batch([0, 1, 2]), Greedy()).decoded
    for row in range(3):
        alone = runner.run(batch([row]), Greedy()).decoded
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


def test_exported_tensors_are_those_imported(runner):
    exported = export_whisper_decoder(jax.device_get(runner.params["decoder"]))
    original = {k: x for k, x in tensors_of(FOLDER).items() if k.startswith("model.decoder.")}
    assert exported.keys() == original.keys()
    for name, x in exported.items():
        np.testing.assert_array_equal(x, original[name])


def test_the_tokenizer_survives_a_round_trip(runner, tmp_path):
    runner.tokenizer.save(tmp_path)
    again = type(runner.tokenizer).load(tmp_path)
    assert again.special == runner.tokenizer.special
    assert again.pieces == runner.tokenizer.pieces


def test_the_digest_follows_the_weights(tmp_path):
    weights = tensors_of(FOLDER)
    same = whisper_folder(tmp_path / "same", weights)
    name = "model.decoder.layers.1.fc1.bias"
    other = whisper_folder(tmp_path / "other", weights | {name: weights[name] + 1e-3})
    assert model_digest(open_model_folder(same)) != model_digest(open_model_folder(other))


@pytest.mark.parametrize(
    ("language", "task", "said"),
    [
        ("tlh", "transcribe", "'tlh' is none that the model knows: de, en, fr, nl"),
        ("en", "summarise", "'summarise' is not one of transcribe, translate"),
    ],
)
def test_an_unknown_language_or_task_is_named(runner, language, task, said):
    with pytest.raises(LanguageError, match=said):
        runner.model.vocabulary.whisper.start_tokens(language, task)


def test_an_english_model_has_no_other_language(runner):
    english = dataclasses.replace(runner.model.vocabulary.whisper, languages=())
    assert english.start_tokens() == (english.start, english.no_timestamps)
    for asked in (("de",), ("en", "translate")):
        with pytest.raises(LanguageError, match="English only"):
            english.start_tokens(*asked)


@pytest.mark.parametrize(
    ("lost", "said"),
    [("tokenizer.json", "has no tokenizer"), ("config.json", "config.json")],
)
def test_a_folder_that_is_not_whole_is_refused_in_a_sentence(tmp_path, lost, said):
    folder = whisper_folder(tmp_path / "m", tensors_of(FOLDER))
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=said):
        load(open_model_folder(folder))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    weights = tensors_of(FOLDER)
    name = "model.decoder.layers.0.encoder_attn.k_proj.weight"
    folder = whisper_folder(tmp_path / "m", weights | {name: weights[name][:8]})
    with pytest.raises(PretrainedError, match=name):
        load(open_model_folder(folder))
