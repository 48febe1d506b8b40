"""The decoder: equal to Hugging Face's LLaMA; shared prompts and layout of the loop invisible.

That cache, padding and neighbours change nothing is tested in `test_contracts`.
"""

import dataclasses
import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Decoder, Lora, RopeScaling
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.kv_cache import KVCache
from tests.contracts import draw_params, quick_jit

GOLDEN = Path(__file__).parent / "golden"
CONFIG = Decoder(width=16, layers=2, query_heads=4, kv_heads=2, head_size=6, feedforward=24)
V, B, S, WIDTH = 11, 3, 9, 4  # WIDTH: positions a call to `extend`
MODEL = Llama(CONFIG, V)


@functools.cache
def params():
    """Random parameters; the norms' scales, which start at 1, too."""
    return draw_params(MODEL, embeddings(), np.ones((B, S), bool))


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def embeddings() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(B, S, 16)).astype(np.float32)


@jax.jit
def full(x, real):
    return MODEL.apply({"params": params()}, x, real)[0]


@jax.jit
def extend(x, real, cache):
    return MODEL.apply({"params": params()}, x, real, cache)


def empty(slots: int = S + 3) -> KVCache:
    return MODEL.empty_cache(B, slots)


def from_hugging_face(weights: dict[str, np.ndarray], layers: int, tied: bool):
    """Our parameters from Hugging Face's; every weight is used, or this fails."""
    left = dict(weights)

    def stacked(name: str, transpose: bool = True) -> np.ndarray:
        each = [left.pop(f"model.layers.{i}.{name}.weight") for i in range(layers)]
        return np.stack([x.T if transpose else x for x in each])

    ours = {
        "embedding": left.pop("model.embed_tokens.weight"),
        "final_norm": {"scale": left.pop("model.norm.weight")},
        "layers": {
            "attention_norm": {"scale": stacked("input_layernorm", False)},
            "feedforward_norm": {"scale": stacked("post_attention_layernorm", False)},
            "attention": {
                "query": {"kernel": stacked("self_attn.q_proj")},
                "key": {"kernel": stacked("self_attn.k_proj")},
                "value": {"kernel": stacked("self_attn.v_proj")},
                "output": {"kernel": stacked("self_attn.o_proj")},
            },
            "gate": {"kernel": stacked("mlp.gate_proj")},
            "up": {"kernel": stacked("mlp.up_proj")},
            "down": {"kernel": stacked("mlp.down_proj")},
        },
    }
    lm_head = left.pop("lm_head.weight")
    assert not left
    return ours if tied else ours | {"lm_head": lm_head}


@pytest.mark.parametrize(
    ("file", "variant"),
    [("llama_gqa", v) for v in ("default", "linear", "llama3", "yarn", "tied")]
    + [("llama_mha", "default")],
)
def test_equals_hugging_face(file, variant):
    """On the weights and logits that tests/golden/make_llama.py wrote."""
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        fields = json.loads(str(arrays["description"]))["variants"][variant]
        prefix = "weight/"
        weights = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
        tokens, expected = arrays["tokens"], arrays[f"logits/{variant}"]
    scaling = RopeScaling(**fields.pop("rope_scaling"))
    config = Decoder(**fields, rope_scaling=scaling, scan_layers=True)
    model = Llama(config, expected.shape[-1])
    variables = {"params": from_hugging_face(weights, config.layers, config.tied)}

    def logits(model: Llama, tokens: jax.Array) -> jax.Array:
        hidden, _ = model(model.embed(tokens), jnp.ones(tokens.shape, bool))
        return model.unembed(hidden)

    got = jax.jit(nn.apply(logits, model))(variables, tokens)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_scan_and_remat_change_neither_outputs_nor_gradients():
    """Dropout included: the recomputation must draw the same mask, and every layer its own."""
    x, real = embeddings(), np.arange(S) < np.array([[S], [5], [0]])
    padded = np.where(real[..., None], x, np.nan)

    def run(scan_layers: bool, remat: bool):
        config = dataclasses.replace(CONFIG, dropout=0.3, scan_layers=scan_layers, remat=remat)

        @quick_jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(params):
            hidden, _ = Llama(config, V).apply(
                {"params": params}, padded, real, None, False, rngs={"dropout": jax.random.key(3)}
            )
            return jnp.sum(jnp.where(real[..., None], hidden, 0) ** 3), hidden

        return loss(params())

    (_, expected), gradients = run(False, False)
    assert np.max(np.abs(expected - full(x, real))) > 0.1  # dropout did something
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    for scan_layers, remat in ((False, True), (True, True)):
        (_, hidden), got = run(scan_layers, remat)
        np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
        jax.tree.map(close, got, gradients)


def test_bfloat16_is_near_float32():
    x, real = embeddings(), np.ones((B, S), bool)
    model = Llama(CONFIG, V, jnp.bfloat16)
    cache = model.empty_cache(B, S)
    assert cache.keys.dtype == jnp.bfloat16
    hidden, after = jax.jit(model.apply)({"params": params()}, x, real, cache)
    assert hidden.dtype == after.values.dtype == jnp.bfloat16
    expected = full(x, real)
    error = np.sqrt(np.mean((hidden.astype(jnp.float32) - expected) ** 2))
    assert error < 0.02 * np.sqrt(np.mean(expected**2))


def test_place_counts_real_positions_only():
    cache = KVCache.empty(1, 2, 6, 1, 2, jnp.float32).replace(length=jnp.array([3, 0]))
    real = np.array([[True, False, True], [False, True, False]])
    positions, slots = cache.place(real)
    np.testing.assert_array_equal(positions, [[3, 3, 4], [-1, 0, 0]])
    np.testing.assert_array_equal(slots, [[3, 6, 4], [6, 0, 6]])


@pytest.mark.parametrize("each", [1, 3])
def test_rows_that_share_a_prompt_are_as_rows_with_a_prompt_each(each):
    """Padding in the prompt included, and gradients through the shared prompt."""
    x, real = embeddings(), np.arange(S) < np.array([[S], [5], [2]])
    rows = np.repeat(np.arange(B), each)
    texts = drawn(2, B * each, WIDTH, CONFIG.width)
    counts = np.random.default_rng(2).integers(0, WIDTH + 1, (2, B * each))

    def run(x: jax.Array, shared: bool) -> tuple[jax.Array, jax.Array]:
        _, cache = extend(x, real, empty(S + 2 * WIDTH))
        if shared:
            cache = cache.fork(each, 2 * WIDTH)
        else:
            arrays = {"keys": cache.keys[:, rows], "values": cache.values[:, rows]}
            cache = cache.replace(
                **arrays, length=cache.length[rows], position_offset=cache.position_offset[rows]
            )
        out = []
        for text, count in zip(texts, counts, strict=True):
            text_real = np.arange(WIDTH) < count[:, None]
            hidden, cache = extend(text, text_real, cache)
            out.append(jnp.where(text_real[..., None], hidden, 0))
        hidden = jnp.stack(out)
        return jnp.sum(hidden**3), hidden

    gradient_of = quick_jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (shared, ours), gradient = gradient_of(x, True)
    (alone, theirs), expected = gradient_of(x, False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shared, alone, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


def test_moved_rows_take_what_they_added_with_them():
    x, real = embeddings(), np.ones((B, S), bool)
    _, prompt = extend(x, real, empty(S))
    texts = drawn(2, 2 * B, WIDTH, CONFIG.width)
    whole = np.ones((2 * B, WIDTH), bool)
    _, cache = extend(texts[0], whole, prompt.fork(2, 2 * WIDTH))
    rows = np.array([1, 0, 2, 2, 5, 4])
    hidden, _ = extend(texts[1], whole, cache.gather_rows(rows.reshape(B, 2) % 2))
    _, other = extend(texts[0][rows], whole, prompt.fork(2, 2 * WIDTH))
    expected, _ = extend(texts[1], whole, other)
    np.testing.assert_array_equal(hidden, expected)
    # Of two caches side by side, and not as many of a prompt as there were.
    places = np.array([[3, 0, 2], [2, 1, 1], [0, 0, 3]])
    both = cache.gather_rows(rows.reshape(B, 2) % 2).concatenate(cache).gather_rows(places)
    three = np.concatenate([rows.reshape(B, 2), np.arange(2 * B).reshape(B, 2)], axis=1)
    three = np.take_along_axis(three, places, axis=1).reshape(-1)
    _, other = extend(texts[0][three], whole[:1].repeat(3 * B, 0), prompt.fork(3, 2 * WIDTH))
    for ours, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=2, alpha=3.0)])
def test_the_layout_for_decoding_changes_no_output(lora):
    """Without a cache, with one, and over a shared prompt; low-rank updates are added."""
    model = Llama(dataclasses.replace(CONFIG, lora=lora), V)
    x, real = embeddings(), np.arange(S) < np.array([[S], [5], [2]])
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x, real))["params"]
    rng = np.random.default_rng(4)
    stacked = jax.tree.map(lambda y: rng.normal(0.5, 0.3, y.shape).astype(np.float32), shapes)
    laid_out = for_decoding({"decoder": stacked}, lora)["decoder"]
    assert "layers" not in laid_out

    @quick_jit
    def outputs(params):
        apply = functools.partial(model.apply, {"params": params})
        alone, _ = apply(x, real)
        prompt, cache = apply(x, real, model.empty_cache(B, S))
        text = np.repeat(x[:, :WIDTH], 2, axis=0)
        behind, cache = apply(text, np.ones((2 * B, WIDTH), bool), cache.fork(2, WIDTH))
        return alone, prompt, behind, cache

    for expected, got in zip(
        jax.tree.leaves(outputs(stacked)), jax.tree.leaves(outputs(laid_out)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
