"""Tiny checkpoints for the tests of the importers, and the shapes that they are imported into."""

from __future__ import annotations

import functools
import shutil
import struct
from pathlib import Path
from typing import Any

import flax.linen as nn
import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.encoders.whisper import WhisperEncoder, sinusoids
from mtp_jax.pretrained import LlamaSource, WhisperSource, whisper, whisper_decoder

GOLDEN = Path(__file__).parent / "golden" / "pretrained"
GOLDEN_WHISPER = GOLDEN.with_name("whisper")  # a whole one


def llama_logits(model: Llama, tokens: jax.Array) -> jax.Array:
    hidden, _ = model(model.embed(tokens), jnp.ones(tokens.shape, bool))
    return model.unembed(hidden)


@functools.cache
def llama_shapes(source: LlamaSource) -> Any:
    init = nn.init(llama_logits, Llama(source.config, source.vocab_size))
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 2), int)))["params"]


@functools.cache
def whisper_shapes(source: WhisperSource) -> Any:
    features = np.zeros((1, 8, source.mel_bins), np.float32)
    init = WhisperEncoder(source.config).init
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), features, np.array([8])))["params"]


def assert_same(got: Any, expected: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def tensors(name: str) -> dict[str, np.ndarray]:
    """All tensors of a golden folder."""
    return {
        k: x for f in sorted((GOLDEN / name).glob("*.safetensors")) for k, x in load_file(f).items()
    }


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder of one file."""
    return dict(load_file(folder / "model.safetensors"))


def whisper_folder(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """The whole golden Whisper with other weights."""
    shutil.copytree(GOLDEN_WHISPER, path, ignore=shutil.ignore_patterns("*.npz", "*.safetensors"))
    save_file(weights, path / "model.safetensors")
    return path


def folder(path: Path, name: str, weights: dict[str, np.ndarray]) -> Path:
    """A Hugging Face folder with the config.json of a golden one and other weights."""
    path.mkdir()
    shutil.copy(GOLDEN / name / "config.json", path)
    save_file(weights, path / "model.safetensors")
    return path


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    source: LlamaSource,
    weights: dict[str, np.ndarray],
    quantised: str = "",
    extra: dict[str, np.ndarray] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file as llama.cpp's convert_hf_to_gguf.py makes it of a LlamaForCausalLM.

    Args:
        path: to be written.
        source: its architecture.
        weights: under Hugging Face's names.
        quantised: name of the one tensor that becomes Q8_0; its rows must be multiples of 32.
        extra: tensors beside them.
        fields: strings and numbers of the header that replace or join the usual ones.
    """
    c = source.config
    header: dict[str, Any] = {
        "llama.embedding_length": c.width,
        "llama.block_count": c.layers,
        "llama.attention.head_count": c.query_heads,
        "llama.attention.head_count_kv": c.kv_heads,
        "llama.attention.key_length": c.head_size,
        "llama.attention.value_length": c.head_size,
        "llama.rope.dimension_count": c.head_size,
        "llama.feed_forward_length": c.feedforward,
        "llama.attention.layer_norm_rms_epsilon": c.norm_epsilon,
        "llama.rope.freq_base": c.rope_theta,
        "tokenizer.ggml.bos_token_id": source.bos,
        "tokenizer.ggml.eos_token_id": source.eos,
    } | (fields or {})
    writer = gguf.GGUFWriter(path, header.pop("general.architecture", "llama"))
    for key, value in header.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(source.vocab_size)])
    writer.add_array("tokenizer.ggml.token_type", [1] * source.vocab_size)
    for name, x in weights.items():
        stem = name.removesuffix(".weight")
        *_, layer, rest = ("", *stem.removeprefix("model.layers.").split(".", 1))
        stacked = stem.startswith("model.layers.")
        theirs = (
            f"blk.{layer}.{GGUF_NAMES[rest]}.weight" if stacked else f"{GGUF_NAMES[stem]}.weight"
        )
        for projection, heads in (("q_proj", c.query_heads), ("k_proj", c.kv_heads)):
            if projection in name:
                halves = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
                x = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(x.shape))
        if name == quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, x)
    for name, x in (extra or {}).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CTRANSLATE2_DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def whisper_variables(heads: int | None = 2) -> dict[str, np.ndarray]:
    """The golden Whisper's encoder as CTranslate2's converter names and fuses it."""
    w, out = tensors("whisper"), {}
    encoder = "model.encoder."

    def both(theirs: str, ours: str, names: tuple[str, str] = ("weight", "bias")) -> None:
        for name, kind in zip(names, ("weight", "bias"), strict=True):
            out[f"encoder/{theirs}/{name}"] = w[f"{encoder}{ours}.{kind}"]

    if heads is not None:
        out["encoder/num_heads"] = np.array(heads, np.int16)
    both("conv1", "conv1")
    both("conv2", "conv2")
    both("layer_norm", "layer_norm", ("gamma", "beta"))
    out["encoder/position_encodings/encodings"] = w[f"{encoder}embed_positions.weight"]
    for i in range(2):
        attention, layer = f"layer_{i}/self_attention", f"layers.{i}"
        both(f"{attention}/layer_norm", f"{layer}.self_attn_layer_norm", ("gamma", "beta"))
        both(f"{attention}/linear_1", f"{layer}.self_attn.out_proj")
        both(f"layer_{i}/ffn/layer_norm", f"{layer}.final_layer_norm", ("gamma", "beta"))
        both(f"layer_{i}/ffn/linear_0", f"{layer}.fc1")
        both(f"layer_{i}/ffn/linear_1", f"{layer}.fc2")
        q, k, v = (f"{encoder}{layer}.self_attn.{x}_proj" for x in "qkv")
        fused = [w[f"{x}.weight"] for x in (q, k, v)]
        out[f"encoder/{attention}/linear_0/weight"] = np.concatenate(fused)
        biases = [w[f"{q}.bias"], np.zeros(16, np.float32), w[f"{v}.bias"]]
        out[f"encoder/{attention}/linear_0/bias"] = np.concatenate(biases)
    out["decoder/embeddings/weight"] = w["model.decoder.embed_tokens.weight"]
    return out


def whole_whisper_variables(params: Any, positions: int) -> dict[str, np.ndarray]:
    """A whole Whisper's parameters as CTranslate2's converter names and fuses them.

    Args:
        params: encoder and decoder, of two attention heads.
        positions: of the encoder.
    """
    out = whisper.export_params(whisper.CTRANSLATE2, params["whisper"])
    out |= whisper.export_params(whisper_decoder.CTRANSLATE2, params["decoder"])
    width = out["encoder/conv1/weight"].shape[0]
    out["encoder/position_encodings/encodings"] = sinusoids(positions, width)
    return out | {f"{part}/num_heads": np.array(2, np.int16) for part in ("encoder", "decoder")}


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> Path:
    """A CTranslate2 folder, as CTranslate2's ModelSpec.save writes it."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    out = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, x in variables.items():
        out += string(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        out += struct.pack("<BI", CTRANSLATE2_DTYPES[x.dtype.name], x.nbytes) + x.tobytes()
    out += struct.pack("<I", 1) + string("decoder/projection/weight")
    out += string("decoder/embeddings/weight")
    path.mkdir()
    (path / "model.bin").write_bytes(out)
    return path
