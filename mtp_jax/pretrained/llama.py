"""LLaMA decoders from Hugging Face folders and GGUF files, into our parameters and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtp_jax.config import ConfigError, Decoder, RopeScaling
from mtp_jax.models.layers import rotary_frequencies
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule, export_params, import_params
from mtp_jax.pretrained.weights import Weights, open_weights, read_json, weight_files

_Part = TypeVar("_Part")


def hugging_face_rules(model: str = "model.", head: str = "lm_head.weight") -> tuple[Rule, ...]:
    """The table of transformers' names.

    Args:
        model: what the names begin with.
        head: name of the LM head.
    """
    return (
        Rule("embedding", f"{model}embed_tokens.weight"),
        Rule("lm_head", head),
        Rule("final_norm/scale", f"{model}norm.weight"),
        *(
            Rule(f"layers/{ours}", f"{model}layers.{{layer}}.{theirs}.weight", transpose)
            for ours, theirs, transpose in (
                ("attention_norm/scale", "input_layernorm", False),
                ("attention/query/kernel", "self_attn.q_proj", True),
                ("attention/query_norm/scale", "self_attn.q_norm", False),
                ("attention/key/kernel", "self_attn.k_proj", True),
                ("attention/key_norm/scale", "self_attn.k_norm", False),
                ("attention/value/kernel", "self_attn.v_proj", True),
                ("attention/output/kernel", "self_attn.o_proj", True),
                ("feedforward_norm/scale", "post_attention_layernorm", False),
                ("gate/kernel", "mlp.gate_proj", True),
                ("up/kernel", "mlp.up_proj", True),
                ("down/kernel", "mlp.down_proj", True),
            )
        ),
    )


HUGGING_FACE = hugging_face_rules()


def gguf_rules(decoder: Decoder) -> tuple[Rule, ...]:
    """The table of llama.cpp's names, whose queries and keys are interleaved within each head."""
    return (
        Rule("embedding", "token_embd.weight"),
        Rule("lm_head", "output.weight"),
        Rule("final_norm/scale", "output_norm.weight"),
        *(
            Rule(f"layers/{ours}", f"blk.{{layer}}.{theirs}.weight", transpose, heads=heads)
            for ours, theirs, transpose, heads in (
                ("attention_norm/scale", "attn_norm", False, 0),
                ("attention/query/kernel", "attn_q", True, decoder.query_heads),
                ("attention/key/kernel", "attn_k", True, decoder.kv_heads),
                ("attention/value/kernel", "attn_v", True, 0),
                ("attention/output/kernel", "attn_output", True, 0),
                ("feedforward_norm/scale", "ffn_norm", False, 0),
                ("gate/kernel", "ffn_gate", True, 0),
                ("up/kernel", "ffn_up", True, 0),
                ("down/kernel", "ffn_down", True, 0),
            )
        ),
    )


@dataclasses.dataclass(frozen=True)
class LlamaSource:
    """What a checkpoint says of its model.

    Attributes:
        config: the architecture; what it does not say (dropout, ...) is at its default.
        vocab_size: V.
        bos, eos: token ids, or None where it names none; of several eos the first.
    """

    config: Decoder
    vocab_size: int
    bos: int | None
    eos: int | None


def llama_architecture(path: str | os.PathLike[str]) -> LlamaSource:
    """Reads the architecture of a Hugging Face folder (config.json alone) or a GGUF file.

    Raises:
        PretrainedError: it is corrupt, or no LLaMA that `mtp_jax.models.decoders.llama` can be.
    """
    kind, _ = weight_files(Path(path))
    if kind == "gguf":
        return _from_gguf(open_weights(path))
    if kind == "safetensors":
        return _from_hugging_face(Path(path))
    raise PretrainedError(
        f"{path} is a CTranslate2 folder, of which only Whisper is read: give the Hugging Face"
        " folder or the GGUF file of the decoder"
    )


def import_llama(path: str | os.PathLike[str], shapes: Any, shardings: Any = None) -> Any:
    """Parameters of the decoder from a Hugging Face folder or a GGUF file.

    Args:
        path: as for `llama_architecture`.
        shapes: nested dict of jax.ShapeDtypeStruct, the decoder's parameters without LoRA's.
        shardings: the same tree of shardings; without it all is put on the default device.

    Returns:
        The same tree of jax.Array.

    Raises:
        PretrainedError: it is corrupt, or does not fit `shapes`.
    """
    weights = open_weights(path)
    if weights.format == "gguf":
        decoder = _from_gguf(weights).config
        return import_params(
            gguf_rules(decoder), weights, shapes, shardings, ("rope_freqs.weight",)
        )
    ignored = ["*.rotary_emb.inv_freq"]
    if llama_architecture(path).config.tied:
        check_tied(weights)
        ignored.append("lm_head.weight")
    return import_params(HUGGING_FACE, weights, shapes, shardings, ignored)


def check_tied(
    weights: Weights,
    head: str = "lm_head.weight",
    embedding: str = "model.embed_tokens.weight",
    rows: int = 1024,
) -> None:
    """Refuses an LM head beside the embedding that is said to be it, and is another."""
    if head not in weights.names or embedding not in weights.names:
        return
    shape = weights.names[head][0]
    if shape == weights.names[embedding][0] and all(
        np.array_equal(weights.read(head, part), weights.read(embedding, part))
        for part in ((slice(i, i + rows),) for i in range(0, shape[0], rows))
    ):
        return
    raise PretrainedError(
        f"{weights.path}: {head} is not the embedding, though config.json says they are tied:"
        " set tie_word_embeddings to false there"
    )


def export_llama(params: Any) -> dict[str, np.ndarray]:
    """Tensors of a Hugging Face LlamaForCausalLM from the decoder's parameters (without LoRA's)."""
    return export_params(HUGGING_FACE, params)


def hf_config(decoder: Decoder, vocab_size: int, bos: int, eos: int) -> dict[str, Any]:
    """The config.json with which transformers (4 or 5) loads what `export_llama` gives."""
    scaling = decoder.rope_scaling
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling.original_length
    band = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow"),
    }
    rope |= {name: getattr(scaling, name) for name in band.get(scaling.kind, ())}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.feedforward,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.query_heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_epsilon,
        "max_position_embeddings": int(scaling.original_length * scaling.factor),
        "rope_theta": decoder.rope_theta,
        "rope_scaling": None if scaling.kind == "none" else rope,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": decoder.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }


def built(kind: type[_Part], where: Path, /, **fields: Any) -> _Part:
    """A part of a config; `where` says what it was read from."""
    try:
        return kind(**fields)
    except ConfigError as error:
        raise PretrainedError(f"{where} describes no model that can be built: {error}") from error


def _from_hugging_face(folder: Path) -> LlamaSource:
    where = folder / "config.json"
    config = Fields(where, read_json(where))
    config.must("model_type", ("llama", "mistral"), None)
    return llama_of(config)


def llama_of(config: Fields) -> LlamaSource:
    """The decoder that a config.json of transformers, or its ``text_config``, describes.

    Args:
        config: of a LLaMA, Qwen3 or Granite; the last two are LLaMAs with fields of
            `config.Decoder` set.

    Raises:
        PretrainedError: it is none that can be built.
    """
    where, kind = config.where, config.get("model_type", "llama")
    config.must("hidden_act", ("silu",), "silu")
    config.must("attention_bias", (False,), False)
    config.must("mlp_bias", (False,), False)
    if config.get("use_sliding_window", True):
        config.must("sliding_window", (None,), None)
    config.must("quantization_config", (None,), None)
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    theta, scaling = _rope(where, config)
    own: dict[str, Any] = {"qk_norm": kind == "qwen3"}
    if kind == "granite":
        names = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
        own |= {name: config.number(name, 1.0) for name in names}
        own["attention_scale"] = config.number("attention_multiplier", 1.0)
    return LlamaSource(
        config=built(
            Decoder,
            where,
            width=width,
            layers=config.integer("num_hidden_layers"),
            query_heads=heads,
            kv_heads=config.integer("num_key_value_heads", heads),
            head_size=config.integer("head_dim", width // max(heads, 1)),
            feedforward=config.integer("intermediate_size"),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            **own,
        ),
        vocab_size=config.integer("vocab_size"),
        bos=config.token("bos_token_id"),
        eos=config.token("eos_token_id"),
    )


def _rope(where: Path, config: Fields) -> tuple[float, RopeScaling]:
    """Base and scaling, of ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4)."""
    values = config.get("rope_parameters", None) or config.get("rope_scaling", None) or {}
    if not isinstance(values, Mapping):
        raise PretrainedError(f"{where} has no object for its rotary positions: download it again")
    rope = Fields(where, values)
    theta = rope.number("rope_theta", config.number("rope_theta", 10_000.0))
    rope.must("partial_rotary_factor", (1.0,), config.get("partial_rotary_factor", 1.0))
    if nested := [name for name, value in values.items() if isinstance(value, Mapping)]:
        raise PretrainedError(
            f"{where}: rope_parameters of their own for {nested[0]} are not supported: give a model"
            " whose layers share theirs"
        )
    key = "rope_type" if "rope_type" in values else "type"
    if values.get(key) is None and "factor" in values:
        raise PretrainedError(f"{where}: rope_parameters have a factor and no rope_type: add it")
    rope.must(key, ("default", "linear", "llama3", "yarn"), "default")
    kind = rope.get(key, "default")
    if kind == "default":
        return theta, RopeScaling()
    factor = rope.number("factor")
    fields: dict[str, Any] = {}
    if kind in ("llama3", "yarn"):
        fields["original_length"] = rope.integer(
            "original_max_position_embeddings", config.get("max_position_embeddings", None)
        )
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            fields[name] = rope.number(name)
    if kind == "yarn":
        sharpening = 0.1 * np.log(factor) + 1
        if abs(rope.number("attention_factor", sharpening) - sharpening) > 1e-6:
            raise PretrainedError(f"{where}: yarn with an attention_factor is not supported")
        rope.must("mscale", (None,), None)
        rope.must("truncate", (True,), True)
        fields |= {
            "beta_fast": rope.number("beta_fast", 32),
            "beta_slow": rope.number("beta_slow", 1),
        }
    return theta, built(RopeScaling, where, kind=kind, factor=factor, **fields)


def _from_gguf(weights: Weights) -> LlamaSource:
    where, header = weights.path, Fields(weights.path, weights.metadata)
    header.must("general.architecture", ("llama",), None)
    header.must("llama.expert_count", (0,), 0)
    width = header.integer("llama.embedding_length")
    heads = header.integer("llama.attention.head_count")
    size = header.integer("llama.attention.key_length", width // max(heads, 1))
    header.must("llama.attention.value_length", (size,), size)
    header.must("llama.rope.dimension_count", (size,), size)
    if "token_embd.weight" not in weights.names:
        raise PretrainedError(f"{where} lacks token_embd.weight: give the file of a whole model")
    theta = header.number("llama.rope.freq_base", 10_000.0)
    return LlamaSource(
        config=built(
            Decoder,
            where,
            width=width,
            layers=header.integer("llama.block_count"),
            query_heads=heads,
            kv_heads=header.integer("llama.attention.head_count_kv", heads),
            head_size=size,
            feedforward=header.integer("llama.feed_forward_length"),
            rope_theta=theta,
            rope_scaling=_gguf_scaling(weights, header, size, theta),
            norm_epsilon=header.number("llama.attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in weights.names,
        ),
        vocab_size=weights.names["token_embd.weight"][0][0],
        bos=header.token("tokenizer.ggml.bos_token_id"),
        eos=header.token("tokenizer.ggml.eos_token_id"),
    )


def _gguf_scaling(weights: Weights, header: Fields, size: int, theta: float) -> RopeScaling:
    """Of metadata for linear and yarn; for llama3, whose divisors alone are kept, found from them.

    The divisors are those of the published models (low 1, high 4, original length 8192) or refused.
    """
    prefix, where = "llama.rope.scaling.", weights.path
    if "rope_freqs.weight" in weights.names:
        divisors = weights.read("rope_freqs.weight")
        scaling = built(RopeScaling, where, kind="llama3", factor=float(divisors.max()))
        plain, slowed = (rotary_frequencies(size, theta, s)[0] for s in (RopeScaling(), scaling))
        expected = np.asarray(plain) / np.asarray(slowed)
        if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
            raise PretrainedError(
                f"{where}: rope_freqs.weight is not that of Llama 3: give the Hugging Face folder"
            )
        return scaling
    header.must(prefix + "type", ("none", "linear", "yarn"), "none")
    kind = header.get(prefix + "type", "none")
    if kind == "none":
        return RopeScaling()
    fields: dict[str, Any] = {"kind": kind, "factor": header.number(prefix + "factor")}
    if kind == "yarn":
        for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            header.must(prefix + name, (1.0,), 1.0)
        fields |= {
            "original_length": header.integer(prefix + "original_context_length"),
            "beta_fast": header.number(prefix + "yarn_beta_fast", 32),
            "beta_slow": header.number(prefix + "yarn_beta_slow", 1),
        }
    return built(RopeScaling, where, **fields)
