"""MWER on tiny real models of both kinds: lists, scores, errors and gradients."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtp_jax.config import Heads, Mwer
from mtp_jax.data import Batch
from mtp_jax.decoding import BeamSearch, NBest, PrefixBeam, Strategy, registry
from mtp_jax.inference import decoder_functions
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.models.params import by_path
from mtp_jax.models.recogniser import Encoded, Recogniser, call
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.mwer import mwer_loss, sequence_log_probs, with_reference, word_errors
from mtp_jax.training.step import loss_fn
from mtp_jax.training.word_hashes import Spelling
from tests.test_decoder_functions import LIMIT, PLAIN, build, drawn, encode
from tests.tiny_whisper import drawn_params, tiny_whisper

# Pieces: specials, word starts, continuations; and those that only a Whisper has.
SPELLING = Spelling(
    hash=jnp.array([0, 0, 0, 0, *range(11, 18), *[0] * 8], jnp.uint32),
    power=jnp.array([1, 1, 1, 1, *[101] * 7, *[1] * 8], jnp.uint32),
    characters=jnp.array([0, 0, 0, 0, *[1] * 7, *[0] * 8], jnp.int32),
    starts=jnp.array([False] * 4 + [True, False, True, False, True, False, True] + [False] * 8),
)
KINDS = pytest.mark.parametrize("kind", ["speech_llama", "whisper", "whisper, serial heads"])


def with_options(model: Recogniser, **options: Any) -> Recogniser:
    mwer = dataclasses.replace(Mwer(weight=1.0, beams=3), **options)
    return model.clone(config=dataclasses.replace(model.config, mwer=mwer))


@functools.cache
def recogniser(kind: str) -> tuple[Recogniser, Any]:
    """A model and its parameters."""
    if kind == "speech_llama":
        return build("latent", PLAIN)
    model = tiny_whisper(Heads("serial" if "serial" in kind else "latent", 4))
    return model, drawn_params(model)


def references() -> tuple[np.ndarray, np.ndarray]:
    """Texts that no model says, and their lengths."""
    rng = np.random.default_rng(0)
    length = np.array([7, 3, 0, 12, 1, 9, 5, 8], np.int32)
    tokens = rng.integers(4, 11, (8, 14)).astype(np.int32)
    for row, n in enumerate(length):
        tokens[row, max(n - 1, 0) :] = 2
    return tokens, length


def waveforms() -> Batch:
    audio = np.random.default_rng(0).normal(size=(8, 3000)) * 3000
    given = audio.astype(np.int16), np.full(8, 3000, np.int32)
    return Batch(*given, *references(), np.arange(8, dtype=np.int32))


def case(kind: str = "speech_llama", **options: Any) -> tuple[Recogniser, Any, Encoded, Batch]:
    """A model, its parameters, encoded audio, and references that are not what it says."""
    model, params = recogniser(kind)
    if kind.startswith("whisper"):
        batch = waveforms()
        encoded = quick_jit(decoder_functions.encode, static_argnums=0)(model, params, batch)
    else:
        features, frames = drawn()
        batch = Batch(features, frames, *references(), np.arange(8, dtype=np.int32))
        encoded = encode(model, params, features, frames)
    return with_options(model, **options), params, encoded, batch


# Tiny programs take longer to optimize than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(quick_jit, static_argnums=0)
def loss_of(model: Recogniser, params: Any, encoded: Encoded, batch: Batch) -> Any:
    return mwer_loss(model, params, encoded, batch.tokens, batch.token_length, SPELLING)


@functools.partial(quick_jit, static_argnums=0)
def gradient_of(model: Recogniser, params: Any, encoded: Encoded, batch: Batch) -> Any:
    def loss(params: Any) -> Any:
        return mwer_loss(model, params, encoded, batch.tokens, batch.token_length, SPELLING)

    return jax.value_and_grad(loss, has_aux=True)(params)


log_probs_of = functools.partial(quick_jit, static_argnums=0)(sequence_log_probs)
step_loss = functools.partial(quick_jit, static_argnums=0)(loss_fn)


SEARCH = PrefixBeam(3, width=4)


def search(model: Recogniser, params: Any, encoded: Encoded, strategy: Strategy = SEARCH) -> NBest:
    active = jnp.ones(len(encoded.length), bool)
    decode = quick_jit(
        lambda: strategy.decode(bind_decoder(model, params, encoded), active, LIMIT).nbest
    )
    nbest = decode()
    assert nbest is not None
    return nbest


@KINDS
@pytest.mark.parametrize("strategy", [BeamSearch(3), PrefixBeam(3), PrefixBeam(5, width=3)])
def test_hypotheses_are_scored_as_the_search_scored_them(strategy: Strategy, kind: str) -> None:
    model, params, encoded, _ = case(kind)
    nbest = search(model, params, encoded, strategy)
    got = log_probs_of(model, params, encoded, nbest)
    expected = jnp.sum(nbest.log_probs, axis=2)
    assert nbest.real.all()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "search"),
    [
        (kind, entry.name)
        for kind in ("speech_llama", "whisper")
        for entry in map(registry.get, registry.names(lambda entry: entry.makes_nbest))
        if kind == "speech_llama" or not entry.needs_ctc_hypothesis
    ],
)
def test_every_search_makes_the_lists_that_it_is_asked_for(kind: str, search: str) -> None:
    model, params, encoded, batch = case(kind, search=search)
    loss, metrics = loss_of(model, params, encoded, batch)
    assert metrics["nbest_size"] == 3
    assert np.isfinite(loss)
    assert metrics["oracle_errors"] <= metrics["nbest_errors"]


def test_all_heads_score_what_they_see_ahead_to() -> None:
    """Against one teacher-forced pass a hypothesis, head by head."""
    model, params, encoded, _ = case(all_heads=True)
    nbest = search(model, params, encoded)
    got = log_probs_of(model, params, encoded, nbest)
    seen = bind_decoder(model, params, encoded)
    weights = np.array([1, 0.5, 0.5, 0.5])
    for row, place in ((0, 0), (3, 2), (5, 1)):
        n = int(nbest.length[row, place])
        text = nbest.tokens[row, place]
        first, cache = seen.prefill(LIMIT)
        fed = jnp.broadcast_to(text, (len(encoded.length), LIMIT))
        hidden, _ = seen.extend(fed, jnp.full(len(fed), n - 1), cache)
        hidden = jnp.concatenate([first[row][None], hidden[row, : n - 1]])
        logits = call(SpeechLlama.all_logits, model, params, hidden)
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        total = 0.0
        for m in range(4):
            total += weights[m] * sum(log_probs[i, m, text[i + m]] for i in range(n - m))
        assert float(got[row, place]) == pytest.approx(total / weights.sum(), rel=1e-3)


def test_errors_are_those_of_words() -> None:
    """Pieces 4, 6, 8 and 10 begin a word; 5, 7 and 9 go on with one."""
    nbest = NBest(
        tokens=jnp.array([[[4, 5, 6, 2], [5, 6, 2, 0], [2, 0, 0, 0]]]),
        length=jnp.array([[4, 3, 1]]),
        log_probs=jnp.zeros((1, 3, 4)),
        real=jnp.ones((1, 3), bool),
    )
    errors = word_errors(SPELLING, nbest, jnp.array([[4, 5, 8, 6, 2, 0]]), jnp.array([5]))
    # "45 6", "5 6" and nothing, against "45 8 6".
    np.testing.assert_array_equal(errors, [[1, 2, 3]])


def test_the_reference_joins_a_list_that_lacks_it() -> None:
    model, params, encoded, batch = case()
    nbest = search(model, params, encoded)
    tokens, length = np.asarray(batch.tokens), np.asarray(batch.token_length)
    tokens = np.pad(tokens, ((0, 0), (0, LIMIT - tokens.shape[1])))
    joined = with_reference(nbest, jnp.asarray(tokens), jnp.asarray(length))
    # Row 2 has no reference, and EOS alone, that of row 4, is in its list.
    np.testing.assert_array_equal(joined.real[:, 3], [1, 1, 0, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(joined.length[:, 3], length)
    same = with_reference(nbest, nbest.tokens[:, 1], nbest.length[:, 1])
    assert not same.real[:, 3].any()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("speech_llama", {}),
        ("speech_llama", {"all_heads": True, "reference": True}),
        ("whisper", {"all_heads": True, "reference": True}),
    ],
)
def test_the_gradient_is_that_of_the_expected_errors(kind: str, options: dict[str, bool]) -> None:
    """Along random directions, by finite differences; the search itself adds none."""
    model, params, encoded, batch = case(kind, **options)
    (loss, metrics), gradient = gradient_of(model, params, encoded, batch)
    assert np.isfinite(loss)
    assert metrics["oracle_errors"] <= metrics["nbest_errors"]
    assert metrics["oracle_errors"] <= metrics["best_errors"]
    rng, step = np.random.default_rng(1), 2e-3
    for _ in range(3):
        way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        size = float(optax.tree.norm(way))
        way = jax.tree.map(functools.partial(jnp.multiply, 1 / size), way)
        up, down = (
            loss_of(model, optax.tree.add_scale(params, by, way), encoded, batch)[0]
            for by in (step, -step)
        )
        slope = float(up - down) / (2 * step)
        parts = jax.tree.map(lambda g, w: float(jnp.sum(g * w)), gradient, way)
        assert slope == pytest.approx(sum(jax.tree.leaves(parts)), rel=0.05, abs=5e-3)
    moved_paths = {path for path, g in by_path(gradient).items() if np.any(g)}
    assert "decoder/embedding" in moved_paths
    assert ("heads/kernel" in moved_paths) == options.get("all_heads", False)


def test_a_step_without_errors_to_tell_apart_changes_nothing() -> None:
    model, params, encoded, batch = case()
    empty = batch._replace(token_length=np.zeros(8, np.int32))
    loss, metrics = loss_of(model, params, encoded, empty)
    assert loss == 0
    assert all(np.isfinite(x) for x in metrics.values())


@KINDS
def test_the_loss_of_a_step_weighs_both(kind: str) -> None:
    """Of waveforms: the lists are made in the step."""
    given, params = recogniser(kind)
    model, batch = with_options(given, weight=2.0, cross_entropy=0.25), waveforms()
    both, metrics = step_loss(model, params, batch, None, SPELLING)
    alone, _ = step_loss(with_options(given, weight=0.0), params, batch, None)
    assert float(both) == pytest.approx(0.25 * float(alone) + 2 * float(metrics["mwer"]), rel=1e-4)
    assert metrics["loss"] == both
    assert metrics["nbest_size"] == 3
