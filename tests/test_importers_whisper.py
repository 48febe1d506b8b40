"""Whisper's encoder from Hugging Face and CTranslate2: equal to transformers, and to each other."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from mtp_jax import pretrained
from mtp_jax.config import Whisper
from mtp_jax.models.encoders.whisper import WhisperEncoder
from mtp_jax.pretrained import PretrainedError
from tests.pretrained import (
    GOLDEN,
    assert_same,
    folder,
    tensors,
    whisper_shapes,
    whisper_variables,
    write_ctranslate2,
)

SOURCE = pretrained.WhisperSource(Whisper(width=16, layers=2, heads=2, positions=20), mel_bins=6)
FUSED = "encoder/layer_1/self_attention/linear_0"


def load(path):
    return pretrained.import_whisper(path, whisper_shapes(pretrained.whisper_architecture(path)))


def test_equals_transformers():
    """On the weights and hidden states that tests/golden/make_pretrained.py wrote."""
    path = GOLDEN / "whisper"
    assert pretrained.whisper_architecture(path) == SOURCE
    with np.load(GOLDEN / "expected.npz") as arrays:
        features, expected = arrays["features"], arrays["whisper"]
    length = np.full(len(features), features.shape[1])
    encode = jax.jit(WhisperEncoder(SOURCE.config).apply)
    got, _ = encode({"params": load(path)}, features, length)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ctranslate2_holds_the_same(tmp_path):
    path = write_ctranslate2(tmp_path / "m", whisper_variables())
    assert pretrained.whisper_architecture(path) == SOURCE
    assert_same(load(path), load(GOLDEN / "whisper"))
    assert pretrained.whisper_digest(path) == pretrained.whisper_digest(GOLDEN / "whisper")


@pytest.mark.parametrize("name", ["encoder/conv1/bias", "encoder/layer_1/ffn/linear_1/weight"])
def test_the_digest_is_that_of_the_values(name, tmp_path):
    before = pretrained.whisper_digest(GOLDEN / "whisper")
    variables = whisper_variables()
    variables[name].flat[-1] += 1e-3
    assert pretrained.whisper_digest(write_ctranslate2(tmp_path / "m", variables)) != before


def test_ctranslate2_in_float16(tmp_path):
    halves = {
        name: x.astype(np.float16) if x.dtype == np.float32 else x
        for name, x in whisper_variables().items()
    }
    got = load(write_ctranslate2(tmp_path / "m", halves))
    expected = jax.tree.map(lambda x: x.astype(np.float16), load(GOLDEN / "whisper"))
    assert_same(got, jax.tree.map(lambda x: x.astype(np.float32), expected))


def test_ctranslate2_in_int8(tmp_path):
    """CTranslate2 stores round(x * scale) with scale = 127 / max |x| of each row."""
    variables, (name, other) = whisper_variables(), (f"{FUSED}/weight", "encoder/num_heads")
    scale = (127 / np.abs(variables[name]).max(axis=1)).astype(np.float32)
    rounded = np.round(variables[name] * scale[:, None]).astype(np.int8)
    quantised = variables | {name: rounded, f"{name}_scale": scale}
    got = load(write_ctranslate2(tmp_path / "m", quantised))
    expected = rounded.astype(np.float32) / scale[:, None]
    for i, part in enumerate(("query", "key", "value")):
        kernel = got["blocks"][part]["kernel"][1]
        np.testing.assert_array_equal(kernel.T, expected[16 * i : 16 * i + 16])
    np.testing.assert_allclose(expected, variables[name], atol=0.5 / scale.min() + 1e-6)
    wide = variables | {name: rounded.astype(np.int16), other: variables[other]}
    with pytest.raises(PretrainedError, match=rf"not read {name} \(int16\)"):
        load(write_ctranslate2(tmp_path / "wide", wide))


def test_heads_of_64_where_the_converter_wrote_no_number(tmp_path):
    variables = whisper_variables(heads=None)
    path = write_ctranslate2(tmp_path / "narrow", variables)
    with pytest.raises(PretrainedError, match="heads"):  # 16 // 64
        pretrained.whisper_architecture(path)
    variables["encoder/conv1/weight"] = np.zeros((128, 6, 3), np.float32)
    path = write_ctranslate2(tmp_path / "wide", variables)
    assert pretrained.whisper_architecture(path).config.heads == 2


def test_a_bias_of_the_keys_is_refused(tmp_path):
    variables = whisper_variables()
    variables[f"{FUSED}/bias"][20] = 0.1
    with pytest.raises(PretrainedError, match=f"part 2 of 3 of {FUSED}/bias is not zero"):
        load(write_ctranslate2(tmp_path / "m", variables))


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder."])
def test_other_positions_are_refused(prefix, tmp_path):
    """In either naming of Hugging Face; half precision is near enough."""
    old = "model.encoder."
    weights = {k.replace(old, prefix): x for k, x in tensors("whisper").items() if old in k}
    name = f"{prefix}embed_positions.weight"
    weights[name] = weights[name].astype(np.float16)
    assert_same(load(folder(tmp_path / "m", "whisper", weights)), load(GOLDEN / "whisper"))
    weights[name] = weights[name] + np.float16(0.01)
    with pytest.raises(PretrainedError, match="is not Whisper's table of sinusoids"):
        load(folder(tmp_path / "learned", "whisper", weights))


def test_export_is_the_inverse():
    exported = pretrained.export_whisper(load(GOLDEN / "whisper"))
    expected = {k: x for k, x in tensors("whisper").items() if k.startswith("model.encoder.")}
    del expected["model.encoder.embed_positions.weight"]
    assert_same(exported, expected)


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"encoder_ffn_dim": 65}, "encoder_ffn_dim is 65"),
        ({"d_model": None}, "d_model is missing"),
        ({"encoder_attention_heads": 3}, "width"),
    ],
)
def test_another_architecture_is_refused_by_name(fields, culprit, tmp_path):
    path = folder(tmp_path / "m", "whisper", tensors("whisper"))
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=culprit):
        pretrained.whisper_architecture(path)


def test_left_over_and_missing_variables_are_named(tmp_path):
    variables, shapes = whisper_variables(), whisper_shapes(SOURCE)
    del variables["encoder/layer_0/ffn/linear_1/bias"]
    variables["encoder/layer_0/ffn/linear_1/extra"] = np.ones(2, np.float32)
    path = write_ctranslate2(tmp_path / "m", variables)
    with pytest.raises(PretrainedError) as error:
        pretrained.import_whisper(path, shapes)
    assert "lacks encoder/layer_0/ffn/linear_1/bias" in str(error.value)
    assert "left over encoder/layer_0/ffn/linear_1/extra" in str(error.value)
    path = write_ctranslate2(
        tmp_path / "text", {"decoder/embeddings/weight": np.ones((2, 2))[:, :1].astype(np.float32)}
    )
    with pytest.raises(PretrainedError, match="has no encoder/conv1/weight"):
        pretrained.whisper_architecture(path)


def test_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(PretrainedError, match="for LLaMA only"):
        pretrained.whisper_architecture(tmp_path / "model.gguf")
