"""Texts that went wrong behind little silence are decoded again in the full window."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import ConfigError
from mtp_jax.data import FeatureBatch
from mtp_jax.decoding import BeamSearch, Greedy
from mtp_jax.inference.fallback import first_limit, is_short, rows_of, token_limit, went_wrong
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.speech_features import speech_features
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.recordings import noise_batch

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
    return noise_batch(SAMPLES)


def texts(decoded):
    return [decoded.tokens[i, :n].tolist() for i, n in enumerate(np.asarray(decoded.length))]


def are_wrong(runner, decoded):
    limits = [token_limit(samples, runner.model.config) for samples in SAMPLES]
    return [
        went_wrong(text, runner.tokenizer, limit)
        for text, limit in zip(texts(decoded), limits, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "ended", "limit", "wrong"),
    [
        ("the and of that", True, 99, False),
        ("the and of that", True, 3, True),
        ("the and of that", False, 99, True),
        ("the and " * 40, True, 999, True),
        ("", True, 99, False),
    ],
)
def test_what_went_wrong(bare, text, ended, limit, wrong):
    tokenizer = bare.tokenizer
    tokens = tokenizer.encode(text) + ([tokenizer.eos] if ended else [])
    assert went_wrong(tokens, tokenizer, limit) == wrong


def test_a_row_that_went_wrong_has_its_text_of_the_full_window(bare, full, batch):
    first = bare._run(bare._of_first_pass(batch, Greedy()), batch, Greedy(), False).decoded
    again = full.run(batch, Greedy()).decoded
    made = bare.run(batch, Greedy()).decoded
    wrong = are_wrong(bare, first)
    assert 0 < sum(wrong) < len(wrong)
    for row, failed in enumerate(wrong):
        source = again if failed else first
        assert texts(made)[row] == texts(source)[row]
        n = int(made.length[row])
        np.testing.assert_allclose(made.log_probs[row, :n], source.log_probs[row, :n], atol=1e-4)
        assert not made.log_probs[row, n:].any()
        calls = int(first.calls[row]) * failed + int(source.calls[row])
        assert made.calls[row] == calls
        assert made.call[row, : made.length[row]].max() == calls
        assert not made.call[row, made.length[row] :].any()


def test_a_text_without_an_end_is_not_waited_for(bare, batch):
    """In the first pass; in the full window it has as many tokens as any."""
    limit = token_limit(batch.audio.shape[1], bare.model.config)
    most = bare.model.config.data.max_tokens
    assert limit == 19 < most
    first = bare._run(bare._of_first_pass(batch, Greedy()), batch, Greedy(), False).decoded
    assert first.tokens.shape[1] == limit
    made = bare.run(batch, Greedy()).decoded
    assert made.tokens.shape[1] == most and made.calls.max() == limit + most
    assert bare.is_compiled(batch, Greedy())


def test_rows_that_fill_the_window_may_have_as_many_tokens_as_any(bare, full, batch):
    """They are not decoded again, and a limit would cut them off."""
    runner = runner_of(0.2)
    assert is_short(2500, runner.model.config) and not is_short(4800, runner.model.config)
    assert first_limit(batch, runner.model.config) == runner.model.config.data.max_tokens
    assert first_limit(batch, bare.model.config) == 19
    made, whole = (r.run(batch, Greedy()).decoded for r in (runner, full))
    assert texts(made)[0] == texts(whole)[0] and made.calls[0] == whole.calls[0] > 19


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
    first = bare._run(bare._of_first_pass(batch, strategy), batch, strategy, False).decoded
    wrong = are_wrong(bare, first)
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
    assert any(are_wrong(bare, made))
    np.testing.assert_array_equal(made.calls, made.length)


def test_the_full_window_is_decoded_once(full, batch):
    made = full.run(batch, Greedy()).decoded
    assert any(are_wrong(full, made))
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
