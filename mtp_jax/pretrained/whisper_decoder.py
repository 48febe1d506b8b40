"""Whisper's decoder from Hugging Face and CTranslate2 folders, into our parameters and back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ConfigError, WhisperDecoder
from mtp_jax.models.decoders.whisper import WhisperDecoder as WhisperDecoderModule
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule, digest_of, export_params, import_params
from mtp_jax.pretrained.weights import Weights, open_weights, read_json, weight_files
from mtp_jax.pretrained.whisper import linear_rules, norm_rules, whisper_digest

_HF_NORM = ("weight", "bias")
_CT2_NORM = ("gamma", "beta")
_ROUNDED = "<f2"


def hugging_face_rules(prefix: str) -> tuple[Rule, ...]:
    """The table of transformers' names.

    Args:
        prefix: ``model.decoder.`` of a whole model, or ``decoder.``.
    """
    layer = prefix + "layers.{layer}."
    cross = layer + "encoder_attn."
    return (
        Rule("embedding", prefix + "embed_tokens.weight"),
        Rule("positions", prefix + "embed_positions.weight"),
        *norm_rules("final_norm", prefix + "layer_norm", _HF_NORM),
        *norm_rules("layers/attention_norm", layer + "self_attn_layer_norm", _HF_NORM),
        *norm_rules("layers/cross_norm", layer + "encoder_attn_layer_norm", _HF_NORM),
        *norm_rules("layers/feedforward_norm", layer + "final_layer_norm", _HF_NORM),
        *linear_rules("layers/query", layer + "self_attn.q_proj"),
        *linear_rules("layers/key", layer + "self_attn.k_proj")[:1],
        *linear_rules("layers/value", layer + "self_attn.v_proj"),
        *linear_rules("layers/output", layer + "self_attn.out_proj"),
        *linear_rules("layers/cross_query", cross + "q_proj"),
        *linear_rules("layers/cross_output", cross + "out_proj"),
        Rule("cross/key_kernel", cross + "k_proj.weight", transpose=True),
        Rule("cross/value_kernel", cross + "v_proj.weight", transpose=True),
        Rule("cross/value_bias", cross + "v_proj.bias"),
        *linear_rules("layers/up", layer + "fc1"),
        *linear_rules("layers/down", layer + "fc2"),
    )


def _ctranslate2_rules() -> tuple[Rule, ...]:
    """The table of CTranslate2's names: what multiplies one input is one tensor."""
    attention, cross, feedforward = (
        f"decoder/layer_{{layer}}/{x}/" for x in ("self_attention", "attention", "ffn")
    )
    audio = cross + "linear_1/"
    return (
        Rule("embedding", "decoder/embeddings/weight"),
        Rule("positions", "decoder/position_encodings/encodings"),
        *norm_rules("final_norm", "decoder/layer_norm", _CT2_NORM, "/"),
        *norm_rules("layers/attention_norm", attention + "layer_norm", _CT2_NORM, "/"),
        *norm_rules("layers/cross_norm", cross + "layer_norm", _CT2_NORM, "/"),
        *norm_rules("layers/feedforward_norm", feedforward + "layer_norm", _CT2_NORM, "/"),
        *linear_rules("layers/query", attention + "linear_0", (0, 3), "/"),
        *linear_rules("layers/key", attention + "linear_0", (1, 3), "/")[:1],
        *linear_rules("layers/value", attention + "linear_0", (2, 3), "/"),
        *linear_rules("layers/output", attention + "linear_1", separator="/"),
        *linear_rules("layers/cross_query", cross + "linear_0", separator="/"),
        *linear_rules("layers/cross_output", cross + "linear_2", separator="/"),
        Rule("cross/key_kernel", audio + "weight", transpose=True, part=(0, 2)),
        Rule("cross/value_kernel", audio + "weight", transpose=True, part=(1, 2)),
        Rule("cross/value_bias", audio + "bias", part=(1, 2)),
        *linear_rules("layers/up", feedforward + "linear_0", separator="/"),
        *linear_rules("layers/down", feedforward + "linear_1", separator="/"),
    )


CTRANSLATE2 = _ctranslate2_rules()

# The encoder, the LM head (which is the embedding), and what tells sizes and rules.
IGNORED = (
    *("model.encoder.*", "encoder.*", "encoder/*", "proj_out.weight", "decoder/projection/weight"),
    *(f"decoder/{name}" for name in ("activation", "alibi", "alignment_*", "num_heads")),
    *(f"decoder/{name}" for name in ("pre_norm", "scale_embeddings", "start_from_zero_embedding")),
)


def whisper_decoder_architecture(path: str | os.PathLike[str]) -> tuple[WhisperDecoder, int]:
    """Reads sizes from a Hugging Face folder (config.json alone) or a CTranslate2 one.

    Returns:
        The architecture, and the rows of its embedding.

    Raises:
        PretrainedError: it is corrupt, or no whole Whisper.
    """
    folder = Path(path)
    kind, _ = weight_files(folder)
    if kind == "safetensors":
        return _from_hugging_face(folder / "config.json")
    if kind == "ctranslate2":
        return _from_ctranslate2(open_weights(path))
    raise PretrainedError(f"{path} is a GGUF file, which is read for LLaMA only: give a folder")


def import_whisper_decoder(path: str | os.PathLike[str], shapes: Any, shardings: Any = None) -> Any:
    """Parameters of the decoder from a Hugging Face or CTranslate2 folder.

    Args, returns, raises: as `mtp_jax.pretrained.whisper.import_whisper`.
    """
    weights, rules = _opened(path)
    return import_params(rules, weights, shapes, shardings, IGNORED)


def whisper_model_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hexadecimal) of a whole Whisper's values, which no format of its files changes.

    They are rounded to float16, as Whisper was published: in float32 it is the same model.

    Raises:
        PretrainedError: it is corrupt, or no whole Whisper.
    """
    (config, rows), (weights, rules) = whisper_decoder_architecture(path), _opened(path)

    def run(decoder: WhisperDecoderModule) -> jax.Array:
        real = jnp.ones((1, 1), bool)
        cross = decoder.attend_to(jnp.zeros((1, 1, config.width)), real)
        hidden, _, _ = decoder(decoder.embed(jnp.zeros((1, 1), jnp.int32)), real, cross)
        return hidden

    init = nn.init(run, WhisperDecoderModule(config, rows))
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
    own = digest_of(rules, weights, shapes, IGNORED, _ROUNDED)
    return hashlib.sha256(f"{whisper_digest(path, _ROUNDED)} {own}".encode()).hexdigest()


def _opened(path: str | os.PathLike[str]) -> tuple[Weights, tuple[Rule, ...]]:
    """The weights at `path`, and their table."""
    weights = open_weights(path)
    if weights.format == "ctranslate2":
        _check_flags(weights)
        return weights, CTRANSLATE2
    whole = "model.decoder.embed_tokens.weight" in weights.names
    return weights, hugging_face_rules("model.decoder." if whole else "decoder.")


def export_whisper_decoder(params: Any) -> dict[str, np.ndarray]:
    """Tensors ``model.decoder.*`` of transformers from the decoder's parameters."""
    return export_params(hugging_face_rules("model.decoder."), params)


def _check_flags(weights: Weights) -> None:
    """Refuses variants that CTranslate2 has and Whisper has not."""
    for name, right in (("pre_norm", 1), ("scale_embeddings", 0), ("alibi", 0)):
        if f"decoder/{name}" in weights.names and weights.read(f"decoder/{name}") != right:
            raise PretrainedError(
                f"{weights.path}: decoder/{name} is not {right}, as in every Whisper: choose"
                " another model"
            )


def _checked(where: Path, width: int, layers: int, heads: int, positions: int) -> WhisperDecoder:
    try:
        return WhisperDecoder(
            width=width,
            layers=layers,
            heads=heads,
            positions=positions,
            alignment_heads=_alignment_heads(where if where.is_dir() else where.parent),
        )
    except ConfigError as error:
        raise PretrainedError(f"{where} describes no model that can be built: {error}") from error


def _alignment_heads(folder: Path) -> tuple[tuple[int, ...], ...]:
    """Layer and place of each, by the generation config, or by CTranslate2's config."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            found = read_json(folder / name).get("alignment_heads")
            if found is None:
                continue
            if not isinstance(found, list) or not all(
                isinstance(head, list) and all(type(n) is int for n in head) for head in found
            ):
                raise PretrainedError(
                    f"{folder / name}: alignment_heads is no list of pairs: remove it"
                )
            return tuple(tuple(head) for head in found)
    return ()


def _from_hugging_face(where: Path) -> tuple[WhisperDecoder, int]:
    config = Fields(where, read_json(where))
    config.must("model_type", ("whisper",), None)
    config.must("activation_function", ("gelu",), "gelu")
    config.must("scale_embedding", (False,), False)
    config.must("tie_word_embeddings", (True,), True)
    width = config.integer("d_model")
    config.must("decoder_ffn_dim", (4 * width,), None)
    decoder = _checked(
        where,
        width=width,
        layers=config.integer("decoder_layers"),
        heads=config.integer("decoder_attention_heads"),
        positions=config.integer("max_target_positions", 448),
    )
    return decoder, config.integer("vocab_size")


def _from_ctranslate2(weights: Weights) -> tuple[WhisperDecoder, int]:
    """Sizes from the shapes, as CTranslate2's config.json has none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("embeddings/weight", "position_encodings/encodings"):
        shapes[name], _ = weights.names.get(f"decoder/{name}", ((), ""))
        if len(shapes[name]) != 2:
            raise PretrainedError(f"{weights.path} has no decoder/{name}: give a Whisper model")
    rows, width = shapes["embeddings/weight"]
    layers = 0
    while f"decoder/layer_{layers}/self_attention/linear_0/weight" in weights.names:
        layers += 1
    known = weights.names.get("decoder/num_heads", ((1,), ""))[0] == ()
    heads = int(weights.read("decoder/num_heads")) if known else width // 64
    positions = shapes["position_encodings/encodings"][0]
    return _checked(weights.path, width, layers, heads, positions), rows
