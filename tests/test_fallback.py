"""Texts that went wrong behind little silence are decoded again in the full window."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import ConfigError
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.decoding import BeamSearch, Greedy
from mtp_jax.inference.fallback import rows_of, went_wrong
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.speech_features import speech_features
from tests.pretrained import GOLDEN_WHISPER as FOLDER

RATE = 16_000
SAMPLES = [4800, 2500, 4000, 1000, 100, 3000]


def runner_of(silence):
    return load(open_model_folder(FOLDER), silence=silence)


@pytest.fixture(scope="module")
def bare():
    """No silence behind an utterance: some texts have no end."""
    return runner_of(0.0)


@pytest.fixture(scope="module")
def full():
    return runner_of(30.0)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    audio = rng.normal(scale=3000, size=(len(SAMPLES), max(SAMPLES))).astype(np.int16)
    length = np.array(SAMPLES, np.int32)
    audio[np.arange(audio.shape[1]) >= length[:, None]] = 0
    return Batch(
        audio=audio,
        audio_length=length,
        tokens=np.zeros((len(SAMPLES), 0), np.int32),
        token_length=np.zeros(len(SAMPLES), np.int32),
        index=np.arange(len(SAMPLES), dtype=np.int32),
    )


def texts(decoded):
    return [decoded.tokens[i, :n].tolist() for i, n in enumerate(np.asarray(decoded.length))]


@pytest.mark.parametrize(
    ("text", "ended", "wrong"),
    [
        ("the and of that", True, False),
        ("the and of that", False, True),
        ("the and " * 40, True, True),
        ("", True, False),
    ],
)
def test_what_went_wrong(bare, text, ended, wrong):
    tokenizer = bare.tokenizer
    tokens = tokenizer.encode(text) + ([tokenizer.eos] if ended else [])
    assert went_wrong(tokens, tokenizer) == wrong


def test_a_row_that_went_wrong_has_its_text_of_the_full_window(bare, full, batch):
    first = bare._run(bare.model, batch, Greedy(), False).decoded
    again = full.run(batch, Greedy()).decoded
    made = bare.run(batch, Greedy()).decoded
    wrong = [went_wrong(text, bare.tokenizer) for text in texts(first)]
    assert 0 < sum(wrong) < len(wrong)
    for row, failed in enumerate(wrong):
        source = again if failed else first
        assert texts(made)[row] == texts(source)[row]
        np.testing.assert_allclose(made.log_probs[row], source.log_probs[row], atol=1e-4)
        calls = int(first.calls[row]) * failed + int(source.calls[row])
        assert made.calls[row] == calls
        assert made.call[row, : made.length[row]].max() == calls
        assert not made.call[row, made.length[row] :].any()


def test_its_text_is_the_one_that_it_has_alone(bare, batch):
    together = texts(bare.run(batch, Greedy()).decoded)
    for row, text in enumerate(together):
        alone = rows_of(batch, [row], batch.audio.shape[1])
        assert texts(bare.run(alone, Greedy()).decoded) == [text]


def test_words_are_aligned_where_the_text_was_decoded(bare, full, batch):
    made, again = (runner.run(batch, Greedy(), with_alignment=True) for runner in (bare, full))
    frames = np.asarray(again.frames)
    again_there = np.asarray(made.frames) == frames
    assert 0 < again_there.sum() < len(frames)
    for row in np.flatnonzero(again_there):
        n = int(made.decoded.length[row])
        np.testing.assert_allclose(
            made.attention[row, :n, : frames[row]],
            again.attention[row, :n, : frames[row]],
            atol=1e-3,
        )


def test_lists_of_hypotheses_are_those_of_the_full_window(bare, full, batch):
    strategy = BeamSearch(2)
    first = bare._run(bare.model, batch, strategy, False).decoded
    wrong = [went_wrong(text, bare.tokenizer) for text in texts(first)]
    row = wrong.index(True)
    made, again = (runner.run(batch, strategy).decoded.nbest for runner in (bare, full))
    np.testing.assert_array_equal(made.tokens[row], again.tokens[row])
    np.testing.assert_array_equal(made.real[row], again.real[row])


def test_few_shapes(batch):
    part = rows_of(batch, [4, 1, 0], 6400)
    assert part.audio.shape == (4, 6400) and part.index.tolist() == [4, 1, 0, -1]
    assert part.audio_length.tolist() == [100, 2500, 4800, 0]
    np.testing.assert_array_equal(part.audio[1, :2500], batch.audio[1, :2500])


def test_features_stay_as_they_are(bare, batch):
    """There is no waveform to encode again."""
    features, _ = speech_features(bare.model, bare.params, batch)
    encoded = FeatureBatch(*batch._replace(audio=np.asarray(features)))
    made = bare.run(encoded, Greedy()).decoded
    assert any(went_wrong(text, bare.tokenizer) for text in texts(made))
    np.testing.assert_array_equal(made.calls, made.length)


def test_the_full_window_is_decoded_once(full, batch):
    made = full.run(batch, Greedy()).decoded
    assert any(went_wrong(text, full.tokenizer) for text in texts(made))
    np.testing.assert_array_equal(made.calls, made.length)


def test_a_model_says_its_silence_and_a_user_another(workdir):
    own = open_model_folder(FOLDER).read_config().whisper.silence
    assert load(open_model_folder(FOLDER)).model.config.whisper.silence == own
    some = runner_of(0.1).model.config
    assert some.whisper.silence == 0.1
    np.testing.assert_allclose(some.evaluation.bucket_seconds, (0.1 / 3, 0.5 / 3, 0.4))
    assert runner_of(30.0).model.config.evaluation.bucket_seconds == (0.4,)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="silence"):
            runner_of(wrong)
    with pytest.raises(ConfigError, match="silence=3 is for a Whisper"):
        load(Workdir(workdir), silence=3.0)
