"""LLaMA from Hugging Face and GGUF: equal to transformers, and to each other."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from mtp_jax import pretrained
from mtp_jax.config import RopeScaling
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.pretrained import PretrainedError
from tests.pretrained import (
    GOLDEN,
    assert_same,
    folder,
    llama_logits,
    llama_shapes,
    tensors,
    write_gguf,
)

NAMES = ("llama_untied", "llama_tied")
GATE = "model.layers.1.mlp.gate_proj.weight"


def load(path):
    source = pretrained.llama_architecture(path)
    return source, pretrained.import_llama(path, llama_shapes(source))


@pytest.mark.parametrize("name", NAMES)
def test_equals_transformers(name):
    """On the weights and logits that tests/golden/make_pretrained.py wrote."""
    source, params = load(GOLDEN / name)
    with np.load(GOLDEN / "expected.npz") as arrays:
        tokens, expected = arrays["tokens"], arrays[name]
    model = Llama(source.config, source.vocab_size)
    got = jax.jit(nn.apply(llama_logits, model))({"params": params}, tokens)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_architecture():
    source = pretrained.llama_architecture(GOLDEN / "llama_untied")
    c = source.config
    assert (c.width, c.layers, c.query_heads, c.kv_heads) == (32, 2, 4, 2)
    assert (c.head_size, c.feedforward, c.tied) == (12, 48, False)
    assert (source.vocab_size, source.bos, source.eos) == (40, 1, 3)
    assert c.rope_theta == 50_000
    assert c.rope_scaling == RopeScaling("llama3", 8.0, 16, 1.0, 4.0)
    assert pretrained.llama_architecture(GOLDEN / "llama_tied").config.tied


@pytest.mark.parametrize("name", NAMES)
def test_export_is_the_inverse(name, tmp_path):
    """The same tensors, bit for bit, and a config.json that describes the same model."""
    source, params = load(GOLDEN / name)
    exported = pretrained.export_llama(params)
    expected = tensors(name)
    assert exported.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_array_equal(exported[key], x)
        assert exported[key].dtype == x.dtype
    path = folder(tmp_path / "copy", name, exported)
    config = pretrained.hf_config(source.config, source.vocab_size, source.bos, source.eos)
    (path / "config.json").write_text(json.dumps(config))
    again, params_again = load(path)
    assert again == source
    assert_same(params_again, params)


@pytest.mark.parametrize("dtype", [bfloat16, np.float16])
def test_half_precision_is_read_as_it_is(dtype, tmp_path):
    weights = {key: x.astype(dtype) for key, x in tensors("llama_tied").items()}
    source, params = load(folder(tmp_path / "half", "llama_tied", weights))
    got = pretrained.export_llama(params)
    for key, x in weights.items():
        np.testing.assert_array_equal(got[key], x.astype(np.float32))
    shapes = llama_shapes(source)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, bfloat16), shapes)
    halves = pretrained.import_llama(tmp_path / "half", shapes)
    assert {x.dtype for x in jax.tree.leaves(halves)} == {np.dtype(bfloat16)}


@pytest.mark.parametrize("name", NAMES)
def test_gguf_holds_the_same(name, tmp_path):
    source, params = load(GOLDEN / name)
    plain = dataclasses.replace(source.config, rope_scaling=RopeScaling())
    path = write_gguf(tmp_path / "model.gguf", source, tensors(name))
    got, got_params = load(path)
    assert got.config.norm_epsilon == pytest.approx(1e-5)
    assert dataclasses.replace(got.config, norm_epsilon=1e-5) == plain
    assert dataclasses.replace(got, config=source.config) == source
    assert_same(got_params, params)


def test_gguf_quantised(tmp_path):
    """Q8_0: 8 bits and one float16 scale for each 32 numbers; the other tensors are untouched."""
    source, params = load(GOLDEN / "llama_tied")
    path = write_gguf(tmp_path / "model.gguf", source, tensors("llama_tied"), quantised=GATE)
    _, got = load(path)
    gate, expected = got["layers"]["gate"].pop("kernel"), params["layers"]["gate"].pop("kernel")
    assert_same(got, params)
    np.testing.assert_array_equal(gate[0], expected[0])
    assert 0 < np.max(np.abs(gate[1] - expected[1])) < np.max(np.abs(expected[1])) / 200


def test_gguf_rope_of_llama_3(tmp_path):
    """The header does not tell it: llama.cpp keeps what each frequency is divided by."""
    source = pretrained.llama_architecture(GOLDEN / "llama_untied")
    size, theta, scaling = 12, 200_000.0, RopeScaling("llama3", 32.0)
    config = dataclasses.replace(source.config, rope_theta=theta)
    source = dataclasses.replace(source, config=config)
    turns = 8192 / (2 * np.pi * theta ** (np.arange(0, size, 2) / size))
    keep = np.clip((turns - 1) / 3, 0, 1)
    assert np.any((keep > 0) & (keep < 1))
    divisors = (1 / (keep + (1 - keep) / 32)).astype(np.float32)
    file, weights = tmp_path / "model.gguf", tensors("llama_untied")
    path = write_gguf(file, source, weights, extra={"rope_freqs.weight": divisors})
    got, _ = load(path)
    assert got.config.rope_scaling == scaling
    write_gguf(file, source, weights, extra={"rope_freqs.weight": divisors**0.9})
    with pytest.raises(PretrainedError, match=r"rope_freqs\.weight is not that of Llama 3"):
        pretrained.llama_architecture(path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 8.0},
            RopeScaling("yarn", 4.0, 64, beta_fast=8.0),
        ),
        ({"type": "longrope", "factor": 4.0}, "longrope"),
        ({"type": "yarn", "factor": 4.0}, "original_context_length"),
    ],
)
def test_gguf_rope_scaling(fields, expected, tmp_path):
    source = pretrained.llama_architecture(GOLDEN / "llama_tied")
    fields = {f"llama.rope.scaling.{key}": value for key, value in fields.items()}
    path = write_gguf(tmp_path / "m.gguf", source, tensors("llama_tied"), fields=fields)
    if isinstance(expected, str):
        with pytest.raises(PretrainedError, match=expected):
            pretrained.llama_architecture(path)
    else:
        assert pretrained.llama_architecture(path).config.rope_scaling == expected


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4"),
        ({"llama.attention.head_count_kv": 3}, "kv_heads"),
        ({"llama.block_count": "two"}, "llama.block_count is no number"),
    ],
)
def test_gguf_of_another_architecture_is_refused(fields, culprit, tmp_path):
    source = pretrained.llama_architecture(GOLDEN / "llama_tied")
    path = write_gguf(tmp_path / "m.gguf", source, tensors("llama_tied"), fields=fields)
    with pytest.raises(PretrainedError, match=culprit):
        pretrained.llama_architecture(path)


def configured(path, **fields):
    """The golden tied folder with other fields in its config.json (None removes one)."""
    path = folder(path, "llama_tied", tensors("llama_tied"))
    config = json.loads((path / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    return path


YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_parameters": None, "rope_theta": 500.0}, (500.0, RopeScaling())),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            (10_000.0, RopeScaling("linear", 2.0)),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **YARN}},
            (100.0, RopeScaling("yarn", 4.0, 64)),
        ),
        ({"model_type": "mistral"}, (10_000.0, RopeScaling())),
    ],
)
def test_rope_of_either_transformers(fields, expected, tmp_path):
    config = pretrained.llama_architecture(configured(tmp_path / "m", **fields)).config
    assert (config.rope_theta, config.rope_scaling) == expected
    # What we write is read back as the same, whatever the scaling.
    (tmp_path / "m" / "config.json").write_text(json.dumps(pretrained.hf_config(config, 40, 1, 2)))
    assert pretrained.llama_architecture(tmp_path / "m").config == config


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window is 4096"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is 'dict'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size is no number"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        (
            {"rope_parameters": {"rope_type": "yarn", "attention_factor": 2.0, **YARN}},
            "attention_f",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_theta": 5e5, "factor": 8.0}}, "a factor and no rope_type"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
            "for full_attention are not supported",
        ),
    ],
)
def test_another_architecture_is_refused_by_name(fields, culprit, tmp_path):
    with pytest.raises(PretrainedError, match=culprit):
        pretrained.llama_architecture(configured(tmp_path / "m", **fields))


def test_left_over_missing_and_misshapen_tensors_are_named(tmp_path):
    shapes = llama_shapes(pretrained.llama_architecture(GOLDEN / "llama_tied"))
    weights = tensors("llama_tied")
    whole = weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    path = folder(
        tmp_path / "m",
        "llama_tied",
        whole | {"lm_head.weight": weights["model.embed_tokens.weight"]},
    )
    pretrained.import_llama(path, shapes)
    whole["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(whole, path / "model.safetensors")
    with pytest.raises(PretrainedError, match=r"lm_head\.weight is not the embedding"):
        pretrained.import_llama(path, shapes)
    del weights[GATE]
    bias = "model.layers.0.self_attn.q_proj.bias"
    weights |= {bias: np.ones(32, np.float32), "model.norm.weight": np.ones(31, np.float32)}
    save_file(weights, path / "model.safetensors")
    with pytest.raises(PretrainedError) as error:
        pretrained.import_llama(path, shapes)
    for part in (f"lacks {GATE}", f"left over {bias}", "model.norm.weight ((31,), not (32,))"):
        assert part in str(error.value)


def test_a_ctranslate2_folder_is_refused(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(PretrainedError, match="GGUF file of the decoder"):
        pretrained.llama_architecture(tmp_path)


ON_EIGHT_DEVICES = """
import jax, numpy as np
import flax.linen as nn
from mtp_jax import pretrained
from mtp_jax.config import Mesh
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.distributed.sharding import make_mesh, parameter_shardings
from tests.pretrained import GOLDEN, assert_same, llama_logits, tensors
path = GOLDEN / "llama_untied"
source = pretrained.llama_architecture(path)
init = nn.init(llama_logits, Llama(source.config, source.vocab_size))
boxed = jax.eval_shape(init, jax.random.key(0), np.ones((1, 2), int))["params"]
shardings = parameter_shardings(boxed, make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
params = pretrained.import_llama(path, nn.unbox(boxed), shardings)
kernel = params["layers"]["gate"]["kernel"]
assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 24), kernel.sharding
assert_same(pretrained.export_llama(params), tensors("llama_untied"))
"""


def test_each_device_gets_its_part():
    """A process of its own, as XLA has to be told of several devices before JAX starts."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_EIGHT_DEVICES],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
