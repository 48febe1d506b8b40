"""Serial heads: each takes the token that the one before it drafted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Config, ConfigError, Heads, Mwer, Pretrained
from mtp_jax.decoding import Greedy, Threshold, Verify
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.planning import hlo
from mtp_jax.pretrained.sizes import with_heads
from mtp_jax.training.losses import shifted_targets
from tests.tiny_speech_llm import tiny_speech_llm
from tests.tiny_whisper import WHISPER_WINDOW, drawn_params, tiny_whisper

M, ROWS, LENGTH = 4, 3, 7
EVERY = np.ones(ROWS, bool)  # rows want drafts
FRAMES = round(100 * WHISPER_WINDOW)


@pytest.fixture(
    scope="module",
    params=[(tiny_whisper, 0), (tiny_whisper, 1), (tiny_speech_llm, 1)],
    ids=["block", "layer_and_block", "speech_llm"],
)
def model(request):
    make, layers = request.param
    return make(Heads("serial", M, layers=layers, detached=True))


@pytest.fixture(scope="module")
def params(model):
    return drawn_params(model)


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(1).integers(4, 10, (ROWS, LENGTH))


@pytest.fixture(scope="module")
def run(model, params, text):
    """Hidden states of a text, and what the encoder made of the audio before it."""
    rng = np.random.default_rng(2)
    features = jnp.asarray(rng.normal(size=(ROWS, FRAMES, 8)), jnp.float32)
    frames = np.array([FRAMES, FRAMES // 2, FRAMES - 6])
    length = np.full(ROWS, LENGTH)

    @jax.jit
    def run(params):
        speech = call(Recogniser.encode_speech, model, params, features, frames)
        given = speech, (frames + 1) // 2, text, length
        return model.apply({"params": params}, *given)

    return run(params)


def logits_of(projection):
    return projection.states @ projection.kernel.T


def test_a_head_sees_the_tokens_before_its_own(model, params, text, run):
    """Steps by tokens of a text are what training makes of it, at every position."""
    hidden, encoded = run
    shifted = jax.vmap(shifted_targets, (None, None, 0))
    targets, real = shifted(text, np.full(ROWS, LENGTH), np.arange(1, M + 1))
    _, later = call(Recogniser.projections, model, params, hidden, targets, encoded)
    expected = np.asarray(logits_of(later))
    special = model.vocabulary.whisper
    suppressed = list(special.suppressed) if special else []
    for place in range(LENGTH - M + 1):
        state = call(Recogniser.of_later_heads, model, params, hidden[:, place])
        for m in range(2, M + 1):
            token = text[:, place + m - 2]
            state, logits = call(Recogniser.next_draft, model, params, encoded, state, token)
            wanted = expected[m - 2, :, place]
            assert np.all(real[m - 1, :, place])
            may_be = np.setdiff1d(np.arange(wanted.shape[-1]), suppressed)
            np.testing.assert_allclose(logits[:, may_be], wanted[:, may_be], rtol=1e-4, atol=1e-4)
            assert np.all(logits[:, suppressed] < -1e30)


def test_another_token_changes_what_follows_it_alone(model, params, text, run):
    hidden, encoded = run
    states = hidden[:, 2]
    changed = text.copy()
    changed[:, 3] = np.where(text[:, 3] == 5, 6, 5)

    def chain(tokens):
        state, found = call(Recogniser.of_later_heads, model, params, states), []
        for m in range(2, M + 1):
            token = tokens[:, 2 + m - 2]
            state, logits = call(Recogniser.next_draft, model, params, encoded, state, token)
            found.append(logits)
        return np.stack(found)

    ours, theirs = chain(text), chain(changed)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.all(np.any(ours[1:] != theirs[1:], axis=-1))


def test_drafts_are_the_likeliest_of_each_step(model, params, run):
    """Laid out for decoding too, and for hypotheses that share an audio."""
    hidden, encoded = run
    last = jnp.array([4, 7, 9])
    state = call(Recogniser.of_later_heads, model, params, hidden[:, 1])
    token, expected = last, []
    for _ in range(M - 1):
        state, logits = call(Recogniser.next_draft, model, params, encoded, state, token)
        token = jnp.argmax(logits, axis=-1)
        expected.append(token)
    expected = np.stack(expected, axis=1)
    laid_out = for_decoding(params, model.config.whisper_decoder.lora)
    for used in (params, laid_out):
        drafts = bind_decoder(model, used, encoded).draft(hidden[:, 1], last, EVERY, 0.0)
        np.testing.assert_array_equal(drafts.tokens, expected)
        assert np.all((drafts.probabilities > 0) & (drafts.probabilities <= 1))
    twice = jnp.repeat(hidden[:, 1], 2, axis=0), jnp.repeat(last, 2)
    drafts = jax.jit(
        lambda p, *xs: bind_decoder(model, p, encoded).draft(*xs, jnp.ones(2 * ROWS, bool), 0.0)
    )(laid_out, *twice)
    np.testing.assert_array_equal(drafts.tokens, np.repeat(expected, 2, axis=0))


def test_drafting_ends_where_it_is_not_needed(model, params, run):
    """A row has as many drafts as it has alone: those before which all are likely enough."""
    hidden, encoded = run
    last = jnp.array([4, 7, 9])
    draft = bind_decoder(model, params, encoded).draft
    every = draft(hidden[:, 1], last, EVERY, 0.0)
    np.testing.assert_array_equal(every.drafted, M - 1)
    so_far = np.cumprod(every.probabilities, axis=1)
    before = np.concatenate([np.ones((ROWS, 1)), so_far[:, :-1]], axis=1)
    likely = np.sort(before.ravel())  # a limit between two of these is missed by no rounding
    for limit in (1.1, *((likely[1:] + likely[:-1]) / 2)[np.diff(likely) > 1e-4].tolist()):
        some = draft(hidden[:, 1], last, EVERY, limit)
        np.testing.assert_array_equal(some.drafted, np.sum(before >= limit, axis=1))
        for row, drafted in enumerate(some.drafted):
            np.testing.assert_array_equal(some.tokens[row, :drafted], every.tokens[row, :drafted])


def test_rows_that_want_no_drafts_get_none(model, params, run):
    """And those of the others are the same, however long they go on."""
    hidden, encoded = run
    last, wanted = jnp.array([4, 7, 9]), np.array([False, True, False])
    draft = bind_decoder(model, params, encoded).draft
    for limit in (0.0, 0.2):
        every, some = (draft(hidden[:, 1], last, rows, limit) for rows in (EVERY, wanted))
        np.testing.assert_array_equal(some.drafted, np.where(wanted, every.drafted, 0))
        drafted = int(every.drafted[1])
        np.testing.assert_array_equal(some.tokens[1, :drafted], every.tokens[1, :drafted])


def test_a_plan_counts_every_head(model, params, run):
    """Where all are to draft, as in plans for TPUs, the compiled loop tells how often it runs."""
    hidden, encoded = run

    def trips(limit):
        def draft(params):
            functions = bind_decoder(model, params, encoded)
            return functions.draft(hidden[:, 1], jnp.arange(ROWS), EVERY, limit)

        module = hlo.parse(jax.jit(draft).lower(params).compile().as_text())
        return [
            hlo.trip_count(module, computation, instruction)
            for computation in module.computations.values()
            for instruction in computation.instructions
            if instruction.opcode == "while"
        ]

    assert M - 1 in trips(0.0) and None not in trips(0.0)
    assert None in trips(0.5)


def test_fewer_heads_draft_the_first_of_the_same(model, params, run):
    hidden, encoded = run
    last = jnp.array([4, 7, 9])
    drafts = [
        bind_decoder(model.clone(config=with_heads(model.config, count)), params, encoded)
        .draft(hidden[:, 1], last, EVERY, 0.0)
        .tokens
        for count in (3, M)
    ]
    np.testing.assert_array_equal(drafts[0], drafts[1][:, :2])


@pytest.mark.parametrize(
    ("strategy", "reference"),
    [
        (Verify(), Greedy(M)),
        (Threshold(2.0), Greedy()),
    ],
)
def test_strategies_take_their_drafts(model, params, run, strategy, reference):
    """Whatever these are, texts are those of decoding without them."""
    _, encoded = run
    active = jnp.ones(ROWS, bool)

    @jax.jit
    def decode(params):
        functions = bind_decoder(model, params, encoded)
        return [each.decode(functions, active, 12) for each in (strategy, reference)]

    found, expected = decode(params)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert np.all(found.calls <= expected.calls)


def test_only_their_own_parameters_get_a_gradient(model, params, text, run):
    hidden, encoded = run
    targets = np.stack([np.roll(text, -m, axis=1) for m in range(M)])

    def loss(params):
        _, later = call(Recogniser.projections, model, params, hidden, targets, encoded)
        return jnp.sum(jax.nn.log_softmax(logits_of(later))[..., 5])

    grads = jax.grad(loss)(params)
    assert all(np.all(x == 0) for x in jax.tree.leaves(grads["decoder"]))
    assert all(np.any(x != 0) for x in jax.tree.leaves(grads["heads"]["block"]))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, "needs a finished model to be added to"),
        (
            {"pretrained": Pretrained(model="folder"), "mwer": Mwer(weight=1.0, all_heads=True)},
            "needs heads that draft independently",
        ),
    ],
)
def test_what_serial_heads_cannot_do(groups, said):
    with pytest.raises(ConfigError, match=said):
        Config(heads=Heads("serial", 3), **groups)


def test_their_number_is_chosen_when_they_are_loaded(model):
    assert with_heads(model.config, 2).heads.count == 2
    assert with_heads(model.config, 0) is model.config


@pytest.mark.parametrize("heads", [Heads("latent", 4), Heads("serial", 1)])
def test_the_number_of_others_is_fixed(model, heads):
    config = dataclasses.replace(model.config, heads=heads)
    with pytest.raises(ConfigError, match="heads=3 must be 1 or more, and is for serial heads"):
        with_heads(config, 3)
