"""Released speech LLMs from Hugging Face folders: architecture and parameters, whatever the family.

A family is one function that reads its config.json and names the tables of its parts; each encoder,
projector and decoder has one table. Names are those of the Hub, which `transformers` 5 writes too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mtp_jax.config import (
    FAMILIES,
    AudioEncoder,
    ConfigError,
    Decoder,
    FrontEnd,
    Projector,
    SpeechLlm,
)
from mtp_jax.pretrained import llama, whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule, import_params
from mtp_jax.pretrained.weights import Weights, open_weights, read_json


@dataclasses.dataclass(frozen=True)
class SpeechLlmSource:
    """What a folder says of its model.

    Attributes:
        config: encoder, projector and positions.
        decoder: sizes of the LLM.
        front_end: the log-mel features.
        rows: of the embedding.
        audio_token: id of the token that stands for a row of audio; None if it names none.
    """

    config: SpeechLlm
    decoder: Decoder
    front_end: FrontEnd
    rows: int
    audio_token: int | None


@dataclasses.dataclass(frozen=True)
class _Family:
    """One kind of model.

    Attributes:
        describe: reads its config.json.
        rules: the tables of its parts, below ``encoder/``, ``projector/`` and ``decoder/``.
        positions: the name of a stored table of positions, which must be the one that is computed.
        ignored: patterns of tensors that need not be used.
    """

    describe: Callable[[Fields], SpeechLlmSource]
    rules: Callable[[Weights], Iterable[Rule]]
    positions: str = ""
    ignored: tuple[str, ...] = ()


def family_of(path: str | os.PathLike[str]) -> str:
    """The family of the model in a folder, a key of `config.FAMILIES`; empty if it is of none."""
    try:
        kind = read_json(Path(path) / "config.json").get("model_type")
    except PretrainedError:
        return ""
    return kind if isinstance(kind, str) and kind in FAMILIES else ""


def speech_llm_architecture(path: str | os.PathLike[str]) -> SpeechLlmSource:
    """Reads the architecture of a folder (config.json alone).

    Raises:
        PretrainedError: it is corrupt, or no model that can be built.
    """
    where = Path(path) / "config.json"
    config = Fields(where, read_json(where))
    config.must("model_type", tuple(FAMILIES), None)
    config.must("quantization_config", (None,), None)
    try:
        return _FAMILIES[config.get("model_type", "")].describe(config)
    except ConfigError as error:
        raise PretrainedError(f"{where} describes no model that can be built: {error}") from error


def import_speech_llm(path: str | os.PathLike[str], shapes: Any, shardings: Any = None) -> Any:
    """Parameters of encoder, projector and decoder, each read once, onto their devices.

    Args:
        path: a folder.
        shapes: nested dict of jax.ShapeDtypeStruct, these parts' parameters without LoRA's. Of the
            embedding as many rows are read as are wanted.
        shardings: the same tree of shardings; without it all is put on the default device.

    Returns:
        The same tree of jax.Array.

    Raises:
        PretrainedError: it is corrupt, or does not fit `shapes`.
    """
    source, weights = speech_llm_architecture(path), open_weights(path)
    family = _FAMILIES[source.config.family]
    ignored = list(family.ignored)
    if family.positions:
        ignored.append(family.positions)
        e = source.config.encoder
        whisper.check_positions(weights, family.positions, e.positions, e.width)
    rules = tuple(family.rules(weights))
    if source.decoder.tied:
        names = {rule.ours: rule.theirs for rule in rules}
        head, embedding = names["decoder/lm_head"], names["decoder/embedding"]
        llama.check_tied(weights, head, embedding)
        ignored.append(head)
    return import_params(_padded(rules), weights, shapes, shardings, ignored)


def _padded(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """`rules`, of which those of the vocabulary take the first rows of theirs: it may be padded."""
    rows = ("decoder/embedding", "decoder/lm_head")
    return tuple(
        dataclasses.replace(rule, first_rows=True) if rule.ours in rows else rule for rule in rules
    )


def _below(part: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """A part's table, in the tree of the whole model."""
    return tuple(dataclasses.replace(rule, ours=f"{part}/{rule.ours}") for rule in rules)


def _group(config: Fields, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
    """A group of fields of config.json, over what is meant where it lacks one."""
    values = config.get(name, {})
    if not isinstance(values, Mapping):
        raise PretrainedError(f"{config.where}: {name} is no object: download it again")
    given = {key: value for key, value in values.items() if value is not None}
    return Fields(config.where, {**(defaults or {}), **given})


def _linear(ours: str, theirs: str, bias: bool) -> list[Rule]:
    rules = whisper.linear_rules(ours, theirs)
    return rules if bias else rules[:1]


# What the class of each group means where config.json, of an older transformers, leaves it out.
_VOXTRAL_TEXT = {
    "model_type": "llama",
    "vocab_size": 131_072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
}
_VOXTRAL_AUDIO = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}


def _voxtral(config: Fields) -> SpeechLlmSource:
    text, audio = (
        _group(config, "text_config", _VOXTRAL_TEXT),
        _group(config, "audio_config", _VOXTRAL_AUDIO),
    )
    text.must("model_type", ("llama", "mistral"), None)
    audio.must("activation_function", ("gelu",), "gelu")
    audio.must("scale_embedding", (False,), False)
    config.must("projector_hidden_act", ("gelu",), "gelu")
    decoder = llama.llama_of(text)
    width = audio.integer("hidden_size")
    stack, rest = divmod(audio.integer("intermediate_size"), width)
    if rest or audio.integer("max_source_positions") % stack:
        raise PretrainedError(
            f"{config.where}: audio_config.intermediate_size is no whole number of hidden_size, or"
            " does not divide the positions: choose another model"
        )
    return SpeechLlmSource(
        config=SpeechLlm(
            family="voxtral",
            encoder=AudioEncoder(
                kind="whisper",
                width=width,
                layers=audio.integer("num_hidden_layers"),
                heads=audio.integer("num_attention_heads"),
                feedforward=audio.integer("intermediate_size"),
                positions=audio.integer("max_source_positions"),
            ),
            projector=Projector(stack=stack, width=decoder.config.width, bias=False),
            positions=text.integer("max_position_embeddings"),
        ),
        decoder=decoder.config,
        front_end=FrontEnd("whisper", audio.integer("num_mel_bins")),
        rows=decoder.vocab_size,
        audio_token=config.token("audio_token_id"),
    )


def _voxtral_rules(weights: Weights) -> Iterable[Rule]:
    del weights  # of one layout
    yield from _below("encoder", whisper.hugging_face_rules("audio_tower."))
    for ours, theirs in (("up", "linear_1"), ("down", "linear_2")):
        yield from _below("projector", _linear(ours, f"multi_modal_projector.{theirs}", False))
    yield from _below(
        "decoder",
        llama.hugging_face_rules("language_model.model.", "language_model.lm_head.weight"),
    )


_FAMILIES = {
    "voxtral": _Family(_voxtral, _voxtral_rules, positions="audio_tower.embed_positions.weight"),
}
