"""Decoding with matrices in int8: what is rounded, and that every law of decoding holds of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from mtp_jax.config import ConfigError, Heads, Lora
from mtp_jax.decoding import Greedy, Verify
from mtp_jax.distributed import sharding
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.build import build
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.int8_weights import in_int8, leaf_in_int8
from mtp_jax.models.mixed_precision import matmul, matmul_transposed, mean_of_rows, take_rows
from mtp_jax.models.params import by_path, count, has_int8, is_int8, nested
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.planning.programs import bytes_of, parameters
from mtp_jax.pretrained.exported import merged
from tests.commands import run
from tests.models import CONFIG, tiny_workdir
from tests.pretrained import GOLDEN_WHISPER
from tests.recordings import noise_folder
from tests.speech_llms import GOLDEN, golden_runner
from tests.tiny_speech_llm import tiny_speech_llm
from tests.tiny_whisper import WHISPER_WINDOW, drawn_params, tiny_whisper

WIDTH, ROWS, FRAMES, LIMIT = 4, 4, round(100 * WHISPER_WINDOW), 12
MAKERS = pytest.mark.parametrize("make", [tiny_whisper, tiny_speech_llm])


def whole(x):
    """`x`, as floats if it is in int8."""
    return qwix.dequantize(x) if is_int8(x) else x


def same(ours, theirs):
    ours, theirs = by_path(ours), by_path(theirs)
    assert ours.keys() == theirs.keys()
    for path, x in ours.items():
        for one, other in zip(jax.tree.leaves(x), jax.tree.leaves(theirs[path]), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=path)


@pytest.mark.parametrize(
    ("path", "shape", "axis"),
    [
        ("decoder/layers/up/kernel", (3, 16, 8), 1),
        ("decoder/layer_0/up/transposed_kernel", (8, 16), 1),
        ("decoder/embedding", (19, 16), 1),
        ("heads/block/join/kernel", (16, 8), 0),
    ],
)
def test_a_weight_is_off_by_at_most_a_254th_of_the_largest_of_its_feature(path, shape, axis):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x[(0,) * len(shape)] = 0
    quiet = [slice(None) if i == axis else -1 for i in range(len(shape))]
    x[tuple(quiet)] = 0  # a feature of zeros
    made = leaf_in_int8(path, jnp.asarray(x))
    largest = np.max(np.abs(x), axis=axis, keepdims=True)
    assert made.qvalue.dtype == jnp.int8 and made.qvalue.shape == x.shape
    assert made.scale.dtype == jnp.float32 and made.scale.shape == largest.shape
    assert np.all(np.abs(whole(made) - x) <= largest / 254 * (1 + 1e-5))
    assert np.all(whole(made)[x == 0] == 0)
    assert leaf_in_int8(path, made) is made  # once rounded, it stays


@MAKERS
def test_encoder_caches_and_vectors_stay_as_they_are(make):
    params = drawn_params(make(Heads("latent", 3, layers=1)))
    rounded = in_int8(params)
    found = {path for path, x in by_path(rounded).items() if is_int8(x)}
    assert found and all(path.startswith(("decoder/", "heads/layers/")) for path in found)
    assert not any(name in path for path in found for name in ("norm", "bias", "cross/key", "lora"))
    assert {"decoder/embedding", "decoder/layers/up/kernel", "heads/layers/up/kernel"} <= found
    others = {path: x for path, x in by_path(rounded).items() if path not in found}
    same(nested(others), nested({path: by_path(params)[path] for path in others}))
    assert count(rounded) == count(params)
    assert has_int8(rounded) and not has_int8(params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_the_rounded_matrix(dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 3, 16)), dtype)
    into = leaf_in_int8("decoder/layers/up/kernel", jnp.asarray(rng.normal(size=(16, 8))))
    table = leaf_in_int8("decoder/embedding", jnp.asarray(rng.normal(size=(19, 16))))
    close = 1e-5 if dtype == "float32" else 0.02
    near = {"rtol": close, "atol": close}
    full = x.astype(jnp.float32)
    y = matmul(x, into)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(jnp.float32), full @ whole(into), **near)
    # Nothing is rounded but x, whatever its type.
    y = matmul_transposed(x, table)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, full @ whole(table).T, rtol=1e-5, atol=1e-5)
    tokens = jnp.array([[3, 18], [0, 3]])
    np.testing.assert_array_equal(take_rows(table, tokens), whole(table)[tokens])
    odds = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 19)), jnp.float32)).astype(dtype)
    np.testing.assert_allclose(
        mean_of_rows(odds, table).astype(jnp.float32),
        odds.astype(jnp.float32) @ whole(table),
        **near,
    )


@MAKERS
@pytest.mark.parametrize(
    "heads", [Heads("latent", 3, layers=1, detached=True, vocabulary=9), Heads("serial", 3)]
)
def test_to_round_and_to_lay_out_is_to_lay_out_and_to_round(make, heads):
    """A scale for each output feature: side by side, turned or gathered, it goes with it."""
    params = drawn_params(make(heads))
    if heads.vocabulary:
        params["heads"]["tokens"] = jnp.arange(heads.vocabulary)[::-1]
    same(for_decoding(in_int8(params), Lora()), in_int8(for_decoding(params, Lora())))


@MAKERS
def test_verification_is_greedy_token_for_token(make):
    """Laid out as a CPU has it; what released ones write on meshes is in tests/test_sharding.py."""
    model = make(Heads("serial", WIDTH, layers=1, detached=True))
    rounded = in_int8(drawn_params(model))
    rng = np.random.default_rng(2)
    features = jnp.asarray(rng.normal(size=(ROWS, FRAMES, 8)), jnp.float32)
    frames = np.array([FRAMES, FRAMES // 2, FRAMES - 6, FRAMES - 2])

    @jax.jit
    def encoded(params):
        speech = call(Recogniser.encode_speech, model, params, features, frames)
        return call(Recogniser.encode, model, params, speech, (frames + 1) // 2)

    def texts(params, strategy):
        @jax.jit
        def decode(params, encoded):
            functions = bind_decoder(model, params, encoded)
            return strategy.decode(functions, jnp.ones(ROWS, bool), LIMIT)

        decoded = decode(for_decoding(params, Lora()), encoded(params))
        length = np.asarray(decoded.length)
        return [decoded.tokens[i, :n].tolist() for i, n in enumerate(length)], decoded.calls

    greedy, calls = texts(rounded, Greedy(WIDTH))
    verified, fewer = texts(rounded, Verify())
    assert verified == greedy
    assert len({tuple(text) for text in greedy}) > 2
    assert np.all(fewer <= calls) and np.any(fewer < calls)


def test_a_speech_llm_is_rounded_as_it_is_read():
    folder = open_model_folder(GOLDEN / "voxtral")
    rounded = load(folder, weights="int8").params
    same(rounded, in_int8(load(folder).params))
    assert is_int8(rounded["decoder"]["layers"]["gate"]["kernel"])
    assert not has_int8(rounded["encoder"]) and not has_int8(rounded["projector"])


@pytest.mark.slow
def test_low_rank_updates_are_added_before_anything_is_rounded(tmp_path):
    lora = Lora(rank=2)
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, lora=lora))
    workdir = open_model_folder(tiny_workdir(tmp_path / "run", config))
    plain, rounded = load(workdir), load(workdir, weights="int8")
    assert rounded.model.config.decoder.lora.rank == 0
    same(rounded.params, in_int8(merged(plain.model.config, plain.params)[1]))


def test_an_accelerator_would_hold_half_of_the_decoder():
    """Its scales are split as its features are."""
    config = golden_runner("voxtral").model.config
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype="bfloat16"))
    model = build(config, golden_runner("voxtral").model.vocabulary)
    mesh = jax.sharding.AbstractMesh((1, 2, 2), sharding.AXES)
    plain, int8 = (parameters(model, mesh, weights)["decoder"] for weights in ("", "int8"))
    matrices = [x for x in jax.tree.leaves(int8, is_leaf=is_int8) if is_int8(x)]
    scales = bytes_of([x.scale for x in matrices])
    assert bytes_of([x.qvalue for x in matrices]) * 2 == bytes_of(plain) - bytes_of(
        [x for path, x in by_path(plain).items() if not is_int8(by_path(int8)[path])]
    )
    assert 0 < scales < 0.2 * bytes_of(int8)
    up = int8["layers"]["up"]["kernel"]
    assert tuple(up.qvalue.sharding.spec) == (None, "fsdp", "tensor")
    assert tuple(up.scale.sharding.spec) == (None, None, "tensor")


@pytest.mark.parametrize("weights", ["int4", "bfloat16"])
def test_other_weights_are_refused(weights):
    with pytest.raises(ConfigError, match=f"weights='{weights}' must be 'int8', or ''"):
        load(open_model_folder(GOLDEN_WHISPER), weights=weights)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs a package that is not installed: run pip install"):
        load(open_model_folder(GOLDEN_WHISPER), weights="int8")


@pytest.mark.parametrize("command", ["evaluate", "transcribe", "serve", "compile"])
def test_every_command_that_decodes_or_plans_it_reads_the_flag(command):
    done = run(command, "--weights=int4")
    assert done.status == 2
    assert "--weights=int4" in done.err and "int8" in done.err


@pytest.mark.slow
def test_evaluate_says_what_the_weights_are(tmp_path):
    data = noise_folder(tmp_path, 2, 3000, 4000, text="four")
    done = run(
        *("evaluate", f"--model={GOLDEN_WHISPER}", f"--data={data}/audio.jsonl", "--batch_size=2"),
        *("--weights=int8", "--silence=0.1", "--strategy=greedy", f"--output={tmp_path / 'out'}"),
    )
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["weights"] == "int8" and results["dtype"] == "float32"
