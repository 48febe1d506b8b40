"""Released speech LLMs: equal to transformers in stages, and to themselves in any batch.

On the weights, and against the values, that tests/golden/make_speech_llms.py wrote. In float32 they
agree to 1e-4 of the largest value of a stage, and token for token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.data import Batch
from mtp_jax.decoding import (
    BeamSearch,
    Decoded,
    Drafts,
    Greedy,
    Threshold,
    Verify,
)
from mtp_jax.inference.decoder_functions import bind_decoder, encode
from mtp_jax.inference.runner import Runner
from mtp_jax.models.recogniser import call
from mtp_jax.models.speech_features import speech_features, speech_llm_mel
from mtp_jax.models.speech_llm import SpeechLlm
from mtp_jax.tokenizer.speech_prompts import AUDIO
from tests.speech_llms import (
    NAMES,
    TOLD,
    batch_of,
    expected,
    golden_runner,
    golden_with_heads,
    start_of,
    texts,
    told,
)

LENGTH = 24  # of the golden texts


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


@pytest.fixture
def runner(name) -> Runner:
    return golden_runner(name)


def near(ours: jax.Array, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def stages(runner: Runner, batch: Batch) -> list[tuple[np.ndarray, ...]]:
    """Features, hidden states and rows of the prompt, of each row of a batch, and no padding."""

    @jax.jit
    def run(params):
        audio, samples = jnp.asarray(batch.audio), jnp.asarray(batch.audio_length)
        features, _ = speech_llm_mel(audio, samples, runner.model.config)
        hidden, frames = speech_features(runner.model, params, batch)
        encoded = call(SpeechLlm.encode, runner.model, params, hidden, frames)
        return features, hidden, frames, encoded.audio, encoded.length

    features, hidden, frames, audio, rows = map(np.asarray, run(runner.params))
    return [
        (features[i], hidden[i, : frames[i]], audio[i, : rows[i]]) for i in range(len(features))
    ]


def test_features_states_and_embeddings_equal_those_of_transformers(name, runner):
    theirs = expected(name)
    for row, (features, hidden, audio) in enumerate(stages(runner, batch_of(name))):
        wanted = np.concatenate([x.T for x in theirs[f"features/{row}"]])
        least = min(len(features), len(wanted))  # theirs, or ours of a batch, is padded with zeros
        near(features[:least], wanted[:least])
        assert not np.any(wanted[least:])
        near(hidden, theirs[f"encoded/{row}"][: len(hidden)])
        near(audio, theirs[f"embeddings/{row}"])


def test_prompts_equal_those_of_transformers(name, runner):
    """A token a row of audio stands where ours has one mark for all of them."""
    prompt, theirs = runner.model.vocabulary.speech, expected(name)
    for row in range(len(theirs["samples"])):
        for kind, is_told in (("prompt", False), ("told", True)):
            wanted = theirs[f"{kind}/{row}"].tolist()
            ours = list(start_of(name, is_told))
            at = ours.index(AUDIO)
            rows = [prompt.audio] * len(theirs[f"embeddings/{row}"])
            assert [*ours[:at], *rows, *ours[at + 1 :]] == wanted
            assert prompt.language_in(ours) == (TOLD[name][0] if is_told else "")


def test_logits_equal_those_of_transformers(name, runner):
    theirs = expected(name)
    text = jnp.asarray(theirs["text"])

    @jax.jit
    def logits(params):
        functions = bind_decoder(runner.model, params, encode(runner.model, params, batch_of(name)))
        first, cache = functions.prefill(16)
        hidden, _ = functions.extend(text, jnp.full(len(text), text.shape[1]), cache)
        hidden = jnp.concatenate([first[:, None], hidden], axis=1)
        return hidden @ params["decoder"].get("lm_head", params["decoder"]["embedding"]).T

    ours = logits(runner.params)
    for row in range(len(text)):
        near(ours[row], theirs[f"logits/{row}"][:, : ours.shape[-1]])  # an embedding may be padded


def test_greedy_tokens_equal_those_of_transformers(name, runner):
    theirs, batch = expected(name), batch_of(name)
    for kind, given in (("greedy", batch), ("greedy_told", told(name, batch))):
        decoded = runner.run(given, Greedy()).decoded
        ends = np.isin(theirs[kind], runner.model.vocabulary.ends)  # one token stands for all
        wanted = np.where(ends, runner.model.vocabulary.eos, theirs[kind])
        np.testing.assert_array_equal(texts(decoded.tokens, decoded.length, LENGTH), wanted)


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(2)])
def test_a_row_decodes_as_it_does_alone(name, runner, strategy):
    """The shortest, in a longer batch, with whatever behind its end."""
    together = runner.run(batch_of(name, padding=4000), strategy).decoded
    alone = runner.run(batch_of(name, slice(0, 1)), strategy).decoded
    np.testing.assert_array_equal(together.tokens[0], alone.tokens[0])
    assert together.calls[0] == alone.calls[0]


def test_a_row_has_the_embeddings_that_it_has_alone(name, runner):
    together = stages(runner, batch_of(name, padding=4000))
    for row in (0, 2):
        alone = stages(runner, batch_of(name, slice(row, row + 1)))[0]
        np.testing.assert_allclose(together[row][2], alone[2], rtol=1e-4, atol=1e-5)


def test_rows_may_be_told_different_things(name, runner):
    """Prompts of other lengths, at the right of one array, as batches of chunks have them."""
    batch = batch_of(name)
    usual, long = (start_of(name, is_told) for is_told in (False, True))
    start = np.full((3, max(len(usual), len(long)) + 5), -1, np.int32)
    for row, tokens in enumerate((usual, long, usual)):
        start[row, -len(tokens) :] = tokens
    mixed = runner.run(batch._replace(start=start), Greedy()).decoded
    plain = runner.run(batch, Greedy()).decoded
    given = runner.run(told(name, batch), Greedy()).decoded
    for row, like in enumerate((plain, given, plain)):
        np.testing.assert_array_equal(mixed.tokens[row], like.tokens[row])


def test_steps_equal_the_whole_pass(name, runner):
    """Prefill and calls of any width, drafts rejected between them, against no cache at all."""
    text, batch = jnp.asarray(expected(name)["text"]), batch_of(name)
    rows = len(text)

    @jax.jit
    def both(params):
        functions = bind_decoder(runner.model, params, encode(runner.model, params, batch))
        hidden, cache = functions.prefill(16)
        parts, at = [hidden[:, None]], 0
        for width in (3, 1, 2):
            wrong = jnp.full((rows, 2), 3)  # fed, and taken back
            _, longer = functions.extend(wrong, jnp.full(rows, 2), cache)
            cache = longer.rollback(jnp.full(rows, 2))
            fed = text[:, at : at + width]
            hidden, cache = functions.extend(fed, jnp.full(rows, width), cache)
            parts.append(hidden)
            at += width
        whole, _ = runner.model.apply(
            {"params": params},
            *speech_features(runner.model, params, batch),
            jnp.concatenate([text, jnp.zeros((rows, 1), int)], axis=1),
            jnp.full(rows, text.shape[1] + 1),
        )
        return jnp.concatenate(parts, axis=1), whole

    np.testing.assert_allclose(*both(runner.params), rtol=2e-4, atol=2e-5)


def test_verification_equals_greedy_of_its_width(name):
    heads, batch = golden_with_heads(name, 4), told(name, batch_of(name))
    greedy, verified = (heads.run(batch, s).decoded for s in (Greedy(4), Verify()))
    np.testing.assert_array_equal(verified.tokens, greedy.tokens)
    assert np.all(np.asarray(verified.calls) <= np.asarray(greedy.calls))
    assert int(verified.accepted.sum()) > 0


def test_verification_of_random_drafts_equals_greedy_of_its_width(name):
    heads, batch = golden_with_heads(name, 4), told(name, batch_of(name))
    size = heads.model.vocabulary.size

    @jax.jit
    def run(params) -> tuple[Decoded, Decoded]:
        functions = bind_decoder(heads.model, params, encode(heads.model, params, batch))

        def draft(hidden: jax.Array, last: jax.Array, wanted: jax.Array, least: float) -> Drafts:
            key = jax.random.key(jnp.sum(last) + 7)
            tokens = jax.random.randint(key, (len(last), 3), 0, size)
            return Drafts(tokens, jnp.ones(tokens.shape), jnp.full(len(last), 3))

        active = jnp.ones(3, bool)
        greedy = Greedy(4).decode(functions, active, LENGTH)
        return Verify().decode(functions._replace(draft=draft), active, LENGTH), greedy

    verified, greedy = run(heads.params)
    np.testing.assert_array_equal(verified.tokens, greedy.tokens)


def test_threshold_above_one_equals_greedy(name):
    heads, batch = golden_with_heads(name, 4), told(name, batch_of(name))
    greedy, chosen = (heads.run(batch, s).decoded for s in (Greedy(4), Threshold(2.0)))
    np.testing.assert_array_equal(chosen.tokens, greedy.tokens)
