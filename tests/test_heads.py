"""The heads: all equal to the LM head at first; one alone equals the one among all."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.config import Config, Decoder, Heads
from mtp_jax.models.heads import start_as_lm_head
from mtp_jax.models.recogniser import Vocabulary, call
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.step import heads_loss

M, V, D = 4, 7, 8
KINDS = pytest.mark.parametrize("kind", ["independent", "latent", "residual"])
HIDDEN = np.random.default_rng(0).normal(size=(2, 3, D)).astype(np.float32)


def make_model(
    kind: str, count: int = M, tied: bool = True, dtype: str = "float32", vocabulary: int = 0
) -> SpeechLlama:
    config = Config(
        decoder=Decoder(
            width=D, layers=1, query_heads=2, kv_heads=1, head_size=4, feedforward=8, tied=tied
        ),
        heads=Heads(kind, count, vocabulary=vocabulary),
        train=configs.Train(dtype=dtype),
    )
    return SpeechLlama(config, Vocabulary(V, bos=1, eos=2))


def fresh(model: SpeechLlama):
    """The parameters that the heads' logits depend on, as `train_step.init_state` makes them."""
    params = nn.unbox(model.init(jax.random.key(0), HIDDEN, method="all_logits"))["params"]
    return start_as_lm_head(params, model.config.heads.kind)


def perturbed(params):
    """Parameters whose heads differ."""
    rng = np.random.default_rng(1)

    def noisy(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x + rng.normal(size=x.shape).astype(np.float32) if floating else x

    return params | {"heads": jax.tree.map(noisy, params["heads"])}


@KINDS
@pytest.mark.parametrize("tied", [True, False])
def test_every_head_starts_as_the_lm_head(kind, tied):
    model = make_model(kind, tied=tied)
    params = fresh(model)
    assert ("lm_head" in params["decoder"]) is not tied
    logits = call(SpeechLlama.all_logits, model, params, HIDDEN)
    assert logits.shape == (2, 3, M, V)
    assert np.std(logits[..., 0, :]) > 0.1
    first = np.broadcast_to(logits[..., :1, :], logits.shape)
    np.testing.assert_allclose(logits, first, rtol=1e-5, atol=1e-6)


@KINDS
def test_one_head_equals_the_one_among_all(kind):
    model = make_model(kind)
    params = perturbed(fresh(model))
    drafts = call(SpeechLlama.draft_logits, model, params, HIDDEN)
    assert np.min(np.ptp(drafts, axis=-2)) > 0
    traced = jax.jit(lambda m: call(SpeechLlama.head_logits, model, params, HIDDEN, m))
    for m in range(2, M + 1):
        np.testing.assert_allclose(traced(m), drafts[..., m - 2, :], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        call(SpeechLlama.head_logits, model, params, HIDDEN, M),
        drafts[..., -1, :],
        rtol=1e-5,
        atol=1e-6,
    )
    logits = call(SpeechLlama.all_logits, model, params, HIDDEN)
    np.testing.assert_array_equal(logits[..., 1:, :], drafts)
    np.testing.assert_array_equal(
        logits[..., 0, :], call(SpeechLlama.next_token, model, params, HIDDEN)
    )


@KINDS
def test_logits_are_the_products_of_their_definition(kind):
    model = make_model(kind, tied=False)
    params = perturbed(fresh(model))
    kernel, lm_head = params["heads"]["kernel"], params["decoder"]["lm_head"]
    made = [HIDDEN @ kernel[m - 2] for m in range(2, M + 1)]
    if kind == "residual":
        bias = params["heads"]["bias"]
        made = [HIDDEN + jax.nn.silu(x + bias[m]) for m, x in enumerate(made)]
    expected = made if kind == "independent" else [x @ lm_head.T for x in made]
    drafts = call(SpeechLlama.draft_logits, model, params, HIDDEN)
    np.testing.assert_allclose(drafts, np.stack(expected, -2), rtol=1e-4, atol=1e-5)


@KINDS
def test_one_head_is_the_plain_model(kind):
    model = make_model(kind, count=1)
    params = fresh(model)
    assert "heads" not in params
    assert call(SpeechLlama.draft_logits, model, params, HIDDEN).shape == (2, 3, 0, V)
    logits = call(SpeechLlama.all_logits, model, params, HIDDEN)
    np.testing.assert_array_equal(
        logits[..., 0, :], call(SpeechLlama.next_token, model, params, HIDDEN)
    )


@KINDS
def test_heads_start_apart_from_the_lm_head_they_copy(kind):
    """They share its values, not itself: training head 2 leaves the others alone."""
    model = make_model(kind, tied=False)

    def loss(params):
        return jnp.sum(call(SpeechLlama.head_logits, model, params, HIDDEN, 3) ** 2)

    gradient = jax.grad(loss)(fresh(model))
    moved = np.any(np.asarray(gradient["heads"]["kernel"]) != 0, axis=(1, 2))
    np.testing.assert_array_equal(moved, [False, True, False])
    assert np.any(gradient["decoder"]["lm_head"]) == (kind != "independent")


@KINDS
def test_logits_are_float32_under_bfloat16(kind):
    model = make_model(kind, dtype="bfloat16")
    params = perturbed(fresh(model))
    logits = call(SpeechLlama.all_logits, model, params, HIDDEN)
    assert (
        logits.dtype == call(SpeechLlama.head_logits, model, params, HIDDEN, 2).dtype == jnp.float32
    )
    wide_config = dataclasses.replace(model.config, train=configs.Train())
    wide = call(SpeechLlama.all_logits, SpeechLlama(wide_config, model.vocabulary), params, HIDDEN)
    assert np.sqrt(np.mean((logits - wide) ** 2)) < 0.02 * np.sqrt(np.mean(wide**2))


@KINDS
def test_heads_of_few_tokens_have_the_rows_of_these(kind):
    """The same logits as heads of all tokens, of those that are drafted alone."""
    whole, few = make_model(kind), make_model(kind, vocabulary=3)
    params, tokens = perturbed(fresh(whole)), np.array([1, 4, 6], np.int32)
    own = dict(params["heads"])
    if kind == "independent":
        own["kernel"] = own["kernel"][..., tokens]
    fewer = params | {"heads": own | {"tokens": tokens}}
    expected = call(SpeechLlama.draft_logits, whole, params, HIDDEN)
    found = call(SpeechLlama.draft_logits, few, fewer, HIDDEN)
    np.testing.assert_allclose(found, expected[..., tokens], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        call(SpeechLlama.draft_tokens, few, fewer, np.argmax(found, -1)),
        tokens[np.argmax(expected[..., tokens], -1)],
    )
    lm_head = {**params, "heads": {"kernel": own["kernel"], "tokens": tokens}}
    started = start_as_lm_head(lm_head, kind)["heads"]["kernel"]
    if kind == "independent":
        np.testing.assert_array_equal(started[0], params["decoder"]["embedding"][tokens].T)


@KINDS
def test_what_heads_do_not_draft_is_no_target_of_theirs(kind):
    """The loss of few tokens is that of all, with the others' logits gone, over the known ones."""
    few, tokens = make_model(kind, vocabulary=3), np.array([1, 4, 6], np.int32)
    params = perturbed(fresh(make_model(kind)))
    own = dict(params["heads"])
    if kind == "independent":
        own["kernel"] = own["kernel"][..., tokens]
    params = params | {"heads": own | {"tokens": tokens}}
    text = np.array([[1, 4, 2], [6, 5, 4]], np.int32)
    length, every = np.array([3, 2], np.int32), (True,) * M
    loss, by_head = heads_loss(few, params, HIDDEN, text, length, every, None)
    drafts = call(SpeechLlama.draft_logits, few, params, HIDDEN)
    nats = -jax.nn.log_softmax(drafts)
    # Head 2 has the targets 4, 2 (unknown) and 5 (unknown), head 3 the target 2 (unknown).
    np.testing.assert_allclose(by_head[1], nats[0, 0, 0, 1] / 3, rtol=1e-5)
    np.testing.assert_array_equal(by_head[2:], 0)
    weight = few.config.loss.head_weight
    np.testing.assert_allclose(loss, by_head[0] + weight * by_head[1], rtol=1e-5)
