"""Whisper's encoder from Hugging Face and CTranslate2 folders, into our parameters and back."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import ConfigError, Whisper
from mtp_jax.models.encoders.whisper import WhisperEncoder, sinusoids
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule, digest_of, export_params, import_params
from mtp_jax.pretrained.weights import Weights, open_weights, read_json, weight_files


def hugging_face_rules(prefix: str) -> tuple[Rule, ...]:
    """The table of transformers' names.

    Args:
        prefix: ``model.encoder.`` of a whole model, or ``encoder.``.
    """
    return (
        *convolution_rules(prefix),
        *norm_rules("norm", prefix + "layer_norm", ("weight", "bias")),
        *block_rules(prefix),
    )


def block_rules(prefix: str, key_bias: bool = False) -> tuple[Rule, ...]:
    """The table of the blocks, of an encoder whose names begin with `prefix`."""
    block = prefix + "layers.{layer}."
    return (
        *norm_rules("blocks/attention_norm", block + "self_attn_layer_norm", ("weight", "bias")),
        *norm_rules("blocks/feedforward_norm", block + "final_layer_norm", ("weight", "bias")),
        *linear_rules("blocks/query", block + "self_attn.q_proj"),
        *linear_rules("blocks/key", block + "self_attn.k_proj")[: 1 + key_bias],
        *linear_rules("blocks/value", block + "self_attn.v_proj"),
        *linear_rules("blocks/output", block + "self_attn.out_proj"),
        *linear_rules("blocks/up", block + "fc1"),
        *linear_rules("blocks/down", block + "fc2"),
    )


def convolution_rules(prefix: str, separator: str = ".") -> list[Rule]:
    """Of the two convolutions in front."""
    rules = []
    for i in (1, 2):
        ours, theirs = f"convolution_{i}", f"{prefix}conv{i}{separator}"
        rules += [
            Rule(f"{ours}/kernel", theirs + "weight", taps=3),
            Rule(f"{ours}/bias", theirs + "bias"),
        ]
    return rules


def norm_rules(ours: str, theirs: str, names: tuple[str, str], separator: str = ".") -> list[Rule]:
    """Of a LayerNorm whose scale and bias they call `names`."""
    scale, bias = (theirs + separator + name for name in names)
    return [Rule(f"{ours}/scale", scale), Rule(f"{ours}/bias", bias)]


def linear_rules(
    ours: str, theirs: str, part: tuple[int, int] = (0, 1), separator: str = "."
) -> list[Rule]:
    """Of a `Linear` with a bias, which is `part` of theirs; the kernel's rule comes first."""
    return [
        Rule(f"{ours}/kernel", f"{theirs}{separator}weight", transpose=True, part=part),
        Rule(f"{ours}/bias", f"{theirs}{separator}bias", part=part),
    ]


def _ctranslate2_rules() -> tuple[Rule, ...]:
    """The table of CTranslate2's names: query, key and value in one, the key's bias zero."""
    names = ("gamma", "beta")
    attention, feedforward = (f"encoder/layer_{{layer}}/{x}/" for x in ("self_attention", "ffn"))
    return (
        *convolution_rules("encoder/", "/"),
        *norm_rules("norm", "encoder/layer_norm", names, "/"),
        *norm_rules("blocks/attention_norm", attention + "layer_norm", names, "/"),
        *norm_rules("blocks/feedforward_norm", feedforward + "layer_norm", names, "/"),
        *linear_rules("blocks/query", attention + "linear_0", (0, 3), "/"),
        *linear_rules("blocks/key", attention + "linear_0", (1, 3), "/")[:1],
        *linear_rules("blocks/value", attention + "linear_0", (2, 3), "/"),
        *linear_rules("blocks/output", attention + "linear_1", separator="/"),
        *linear_rules("blocks/up", feedforward + "linear_0", separator="/"),
        *linear_rules("blocks/down", feedforward + "linear_1", separator="/"),
    )


CTRANSLATE2 = _ctranslate2_rules()

# The decoder, and what `whisper_architecture` reads.
IGNORED = ("model.decoder.*", "proj_out.weight", "decoder.*", "decoder/*", "encoder/num_heads")


@dataclasses.dataclass(frozen=True)
class WhisperSource:
    """What a checkpoint says of its encoder.

    Attributes:
        config: the architecture; what it does not say (padded, lora, ...) is at its default.
        mel_bins: Z.
    """

    config: Whisper
    mel_bins: int


def whisper_architecture(path: str | os.PathLike[str]) -> WhisperSource:
    """Reads the architecture of a Hugging Face folder (config.json alone) or a CTranslate2 one.

    Raises:
        PretrainedError: it is corrupt, or no Whisper.
    """
    kind, _ = weight_files(Path(path))
    if kind == "safetensors":
        return _from_hugging_face(Path(path))
    if kind == "ctranslate2":
        return _from_ctranslate2(open_weights(path))
    raise PretrainedError(f"{path} is a GGUF file, which is read for LLaMA only: give a folder")


def import_whisper(path: str | os.PathLike[str], shapes: Any, shardings: Any = None) -> Any:
    """Parameters of the encoder from a Hugging Face or CTranslate2 folder.

    The table of positions is not among them, as ours is computed; theirs must be that table.

    Args:
        path: as for `whisper_architecture`.
        shapes: nested dict of jax.ShapeDtypeStruct, the encoder's parameters without LoRA's.
        shardings: the same tree of shardings; without it all is put on the default device.

    Returns:
        The same tree of jax.Array.

    Raises:
        PretrainedError: it is corrupt, or does not fit `shapes`.
    """
    weights, rules, table = _opened(path)
    return import_params(rules, weights, shapes, shardings, (*IGNORED, table))


def whisper_digest(path: str | os.PathLike[str], dtype: str = "<f4") -> str:
    """SHA-256 (hexadecimal) of the encoder's values, which no format of its files changes.

    Args:
        path: as for `whisper_architecture`.
        dtype: that the values are rounded to.

    Raises:
        PretrainedError: it is corrupt, or no Whisper.
    """
    source, (weights, rules, table) = whisper_architecture(path), _opened(path)
    shapes = jax.eval_shape(
        WhisperEncoder(source.config).init,
        jax.random.key(0),
        jnp.zeros((1, 2, source.mel_bins)),
        jnp.ones(1, jnp.int32),
    )
    return digest_of(rules, weights, nn.unbox(shapes)["params"], (*IGNORED, table), dtype)


def _opened(path: str | os.PathLike[str]) -> tuple[Weights, tuple[Rule, ...], str]:
    """The weights at `path`, their table, and the name of their table of positions."""
    source, weights = whisper_architecture(path), open_weights(path)
    if weights.format == "ctranslate2":
        rules, positions = CTRANSLATE2, "encoder/position_encodings/encodings"
    else:
        prefix = "model.encoder." if "model.encoder.conv1.weight" in weights.names else "encoder."
        rules, positions = hugging_face_rules(prefix), f"{prefix}embed_positions.weight"
    check_positions(weights, positions, source.config.positions, source.config.width)
    return weights, rules, positions


def export_whisper(params: Any) -> dict[str, np.ndarray]:
    """Tensors ``model.encoder.*`` of transformers from the encoder's parameters (without LoRA's).

    The table of positions is left to the caller (`mtp_jax.models.encoders.whisper.sinusoids`).
    """
    return export_params(hugging_face_rules("model.encoder."), params)


def check_positions(weights: Weights, name: str, positions: int, width: int) -> None:
    """Refuses a table other than the sinusoids, to the precision that they are stored in."""
    if name not in weights.names:
        return
    if weights.names[name][0] == (positions, width) and positions * width:
        expected = sinusoids(positions, width)
        error = np.max(np.abs(weights.read(name).astype(np.float32) - expected))
        if error <= (2.5e-3 if weights.names[name][1] == "bfloat16" else 1e-3):
            return
    raise PretrainedError(
        f"{weights.path}: {name} is not Whisper's table of sinusoids, which is computed here and"
        " not imported: choose another model"
    )


def _source(
    where: Path, mel_bins: int, width: int, layers: int, heads: int, positions: int
) -> WhisperSource:
    try:
        whisper = Whisper(width=width, layers=layers, heads=heads, positions=positions)
    except ConfigError as error:
        raise PretrainedError(f"{where} describes no model that can be built: {error}") from error
    return WhisperSource(whisper, mel_bins)


def _from_hugging_face(folder: Path) -> WhisperSource:
    where = folder / "config.json"
    config = Fields(where, read_json(where))
    config.must("model_type", ("whisper",), None)
    config.must("activation_function", ("gelu",), "gelu")
    config.must("quantization_config", (None,), None)
    width = config.integer("d_model")
    config.must("encoder_ffn_dim", (4 * width,), None)
    return _source(
        where,
        config.integer("num_mel_bins", 80),
        width=width,
        layers=config.integer("encoder_layers"),
        heads=config.integer("encoder_attention_heads"),
        positions=config.integer("max_source_positions", 1500),
    )


def _from_ctranslate2(weights: Weights) -> WhisperSource:
    """Sizes from the shapes, as CTranslate2's config.json has none."""
    names = weights.names
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rank in (("conv1/weight", 3), ("position_encodings/encodings", 2)):
        shapes[name], _ = names.get(f"encoder/{name}", ((), ""))
        if len(shapes[name]) != rank:
            raise PretrainedError(f"{weights.path} has no encoder/{name}: give a Whisper model")
    width, mel_bins = shapes["conv1/weight"][:2]
    layers = 0
    while f"encoder/layer_{layers}/self_attention/linear_0/weight" in names:
        layers += 1
    # Older converters wrote no number of heads; every Whisper has heads of 64.
    known = names.get("encoder/num_heads", ((1,), ""))[0] == ()
    heads = int(weights.read("encoder/num_heads")) if known else width // 64
    return _source(
        weights.path,
        mel_bins,
        width=width,
        layers=layers,
        heads=heads,
        positions=shapes["position_encodings/encodings"][0],
    )
