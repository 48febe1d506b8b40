"""The optimizer: its schedule, what it decays, and accumulation."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtp_jax.config import Config, Decoder, Heads, Optim
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.optimizer import decayed, learning_rate, make_optimizer

CONFIG = Optim(
    steps=100, warmup_steps=10, learning_rate=0.5, weight_decay=0.0, b1=0.9, b2=0.98, clip_norm=1e9
)
PARAMS = {"kernel": jnp.array([1.0, -2.0, 3.0]), "bias": jnp.array([4.0])}
GRADIENT = {"kernel": jnp.array([3.0, 0.0, -4.0]), "bias": jnp.array([12.0])}  # of norm 13


def replace(**fields) -> Optim:
    return dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_rises_linearly_and_falls_as_a_cosine(warmup):
    rate = learning_rate(replace(warmup_steps=warmup))
    for step in range(0, 101, 5):
        if step < warmup:
            expected = 0.5 * step / warmup
        else:
            expected = 0.25 * (1 + math.cos(math.pi * (step - warmup) / (100 - warmup)))
        assert rate(step) == pytest.approx(expected, abs=1e-6)
    assert rate(warmup) == pytest.approx(0.5)
    assert rate(100) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("kind", ["independent", "latent"])
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_alone_are_decayed(kind, tied):
    config = Config(decoder=Decoder(tied=tied), heads=Heads(kind, 2))
    model = SpeechLlama(config, Vocabulary(16, bos=1, eos=2))
    x, one, token = jnp.zeros((1, 8, 80)), jnp.ones(1, jnp.int32), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, one, token, one)["params"]
    mask = decayed(nn.unbox(shapes))
    by_path = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (shape, leaf)
        for (path, shape), leaf in zip(
            jax.tree_util.tree_leaves_with_path(nn.unbox(shapes)),
            jax.tree.leaves(mask),
            strict=True,
        )
    }
    names = {
        "heads/kernel": True,
        "ctc/kernel": True,
        "adaptor/kernel": True,
        "decoder/layers/attention/query/kernel": True,
        "encoder/subsampling_0/linear/kernel": True,
        "encoder/blocks/convolution/depthwise": False,
        "encoder/blocks/convolution/depthwise_norm/scale": False,
        "encoder/blocks/attention/qkv/bias": False,
        "decoder/final_norm/scale": False,
        "decoder/embedding": False,
    } | ({} if tied else {"decoder/lm_head": True})
    assert {name: by_path[name][1] for name in names} == names
    assert ("decoder/lm_head" in by_path) is not tied
    vectors = ("bias", "scale", "depthwise", "embedding")
    for name, (_, leaf) in by_path.items():
        assert leaf == (name.split("/")[-1] not in vectors), name


def update(config: Optim, gradients: list, params=PARAMS):
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_decay_shrinks_kernels_at_the_rate_and_leaves_the_rest():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    after = update(replace(warmup_steps=0, weight_decay=0.1), [nothing])
    np.testing.assert_allclose(after["kernel"], PARAMS["kernel"] * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(after["bias"], PARAMS["bias"])


def test_two_steps_of_adam_are_its_definition():
    config = replace(warmup_steps=0)
    gradients = [GRADIENT, {"kernel": jnp.array([1.0, 1.0, 1.0]), "bias": jnp.array([-2.0])}]
    expected, m, v = np.array(PARAMS["kernel"], float), np.zeros(3), np.zeros(3)
    for i, gradient in enumerate(gradients):
        g = np.array(gradient["kernel"], float)
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        unbiased = m / (1 - 0.9 ** (i + 1)), v / (1 - 0.98 ** (i + 1))
        rate = 0.25 * (1 + math.cos(math.pi * i / 100))
        expected -= rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    np.testing.assert_allclose(update(config, gradients)["kernel"], expected, rtol=1e-4)


def test_clipping_scales_the_whole_gradient_before_adam_sees_it():
    """Adam forgets a constant factor, so the second of two gradients shows it."""
    config = replace(warmup_steps=0, clip_norm=6.5)
    halved = jax.tree.map(lambda g: g / 2, GRADIENT)
    small = jax.tree.map(lambda g: g / 10, GRADIENT)
    clipped = update(config, [GRADIENT, small])
    by_hand = update(replace(warmup_steps=0), [halved, small])
    unclipped = update(replace(warmup_steps=0), [GRADIENT, small])
    for name in PARAMS:
        np.testing.assert_allclose(clipped[name], by_hand[name], rtol=1e-6)
    assert np.max(np.abs(clipped["bias"] - unclipped["bias"])) > 1e-2


def test_two_half_batches_accumulated_equal_the_whole():
    """Their mean is clipped and applied once, and the schedule counts updates, not batches."""
    config = replace(warmup_steps=2, weight_decay=0.1, clip_norm=5.0)
    spread = jax.tree.map(lambda g: 5 * jnp.ones_like(g), GRADIENT)
    halves = [
        jax.tree.map(lambda g, s: g + s, GRADIENT, spread),
        jax.tree.map(lambda g, s: g - s, GRADIENT, spread),
    ]
    expected = update(config, 3 * [GRADIENT])
    accumulated = update(dataclasses.replace(config, accumulate=2), 3 * halves)
    for name in PARAMS:
        np.testing.assert_allclose(accumulated[name], expected[name], rtol=1e-6)
    between = update(dataclasses.replace(config, accumulate=2), [*3 * halves, halves[0]])
    for name in PARAMS:
        np.testing.assert_array_equal(between[name], accumulated[name])


MATRICES = {
    "layers": {"query": {"kernel": jnp.zeros((2, 6, 4)), "bias": jnp.zeros((2, 4))}},
    "ctc": {"kernel": jnp.zeros((4, 3))},
    "embedding": jnp.zeros((5, 4)),
}


def muon_updates(gradients):
    """The first update of each parameter, per unit of the learning rate."""
    config = replace(algorithm="muon", warmup_steps=0)
    after = update(config, [gradients], MATRICES)
    return jax.tree.map(lambda x: np.asarray(x) / -0.5, after)


def test_muon_turns_each_layers_matrix_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), MATRICES)
    got = muon_updates(gradients)
    for layer, gradient in enumerate(gradients["layers"]["query"]["kernel"]):
        turned = got["layers"]["query"]["kernel"][layer]
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        # Newton-Schulz brings singular values to about 1; consistent_rms scales that by
        # 0.2 sqrt(6), so that updates are as large as Adam's usually are.
        np.testing.assert_allclose(u.T @ turned @ v.T / (0.2 * 6**0.5), np.eye(4), atol=0.35)
    for name in ("embedding", "ctc"):  # Adam's first update is a sign
        for gradient, moved in zip(
            *map(jax.tree.leaves, (gradients[name], got[name])), strict=True
        ):
            np.testing.assert_array_equal(np.sign(moved), np.sign(gradient))
            assert np.ptp(np.abs(moved)) < 1e-3


def test_muon_takes_the_layers_of_a_stack_one_by_one():
    rng = np.random.default_rng(1)
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), MATRICES)
    first = muon_updates(gradients)["layers"]["query"]["kernel"][0]
    gradients["layers"]["query"]["kernel"][1] *= 100
    got = muon_updates(gradients)["layers"]["query"]["kernel"][0]
    np.testing.assert_allclose(got, first, atol=1e-4)
