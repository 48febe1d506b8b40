"""Released speech LLMs from Hugging Face folders: architecture and parameters, whatever the family.

A family is one file, which reads its config.json and names the tables of its parts
(`mtp_jax.pretrained.family`). Names are those of the Hub, which `transformers` 5 writes too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtp_jax.config import FAMILIES, ConfigError
from mtp_jax.pretrained import llama, whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.family import Family, SpeechLlmSource
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.glm_asr import GLM_ASR
from mtp_jax.pretrained.granite_speech import GRANITE_SPEECH
from mtp_jax.pretrained.qwen3_asr import QWEN3_ASR
from mtp_jax.pretrained.table import Convert, Rule, import_params
from mtp_jax.pretrained.voxtral import VOXTRAL
from mtp_jax.pretrained.weights import read_json


def family_of(path: str | os.PathLike[str]) -> str:
    """The family of the model in a folder, a key of `config.FAMILIES`; empty if it is of none.

    A relative whose ``model_type`` begins with it counts, so that it can be refused by its name.
    """
    try:
        kind = str(read_json(Path(path) / "config.json").get("model_type"))
    except PretrainedError:
        return ""
    return next((family for family in FAMILIES if kind.startswith(family)), "")


def speech_llm_architecture(path: str | os.PathLike[str]) -> SpeechLlmSource:
    """Reads the architecture of a folder (config.json alone).

    Raises:
        PretrainedError: it is corrupt, or no model that can be built.
    """
    where = Path(path) / "config.json"
    config = Fields(where, read_json(where))
    family, kind = family_of(path), config.get("model_type", "")
    if family and kind != family:
        raise PretrainedError(
            f"{where}: a {kind} is built otherwise than a {FAMILIES[family]} ({family}), and cannot"
            " be imported: choose another model"
        )
    config.must("model_type", tuple(FAMILIES), None)
    config.must("quantization_config", (None,), None)
    try:
        return _FAMILIES[family].describe(config)
    except ConfigError as error:
        raise PretrainedError(f"{where} describes no model that can be built: {error}") from error


def released_models() -> dict[str, Family]:
    """The families of the models that are known by their names on the Hub."""
    return {name: family for family in _FAMILIES.values() for name in family.released}


def released_architecture(name: str) -> tuple[SpeechLlmSource, tuple[int, ...]]:
    """The architecture of one of `released_models`, and the tokens that end a text, EOS first.

    No file is read.
    """
    family = released_models()[name]
    config = Fields(Path(name) / "config.json", family.released[name])
    ends = config.get("eos_token_id", [])
    source = (family.describe_released or family.describe)(config)
    return source, tuple(ends) if isinstance(ends, list) else (ends,)


def import_speech_llm(
    path: str | os.PathLike[str],
    shapes: Any,
    shardings: Any = None,
    convert: Convert = lambda path, x: x,
) -> Any:
    """Parameters of encoder, projector and decoder, each read once, onto their devices.

    Args:
        path: a folder.
        shapes: nested dict of jax.ShapeDtypeStruct, these parts' parameters without LoRA's. Of the
            embedding as many rows are read as are wanted.
        shardings: the same tree of shardings; without it all is put on the default device.
        convert: what becomes of each parameter, before the next is read.

    Returns:
        The same tree of jax.Array, or of what `convert` makes of them.

    Raises:
        PretrainedError: it is corrupt, or does not fit `shapes`.
    """
    source = speech_llm_architecture(path)
    family = _FAMILIES[source.config.family]
    weights = family.open(Path(path))
    ignored = list(family.ignored)
    if family.positions:
        ignored.append(family.positions)
        e = source.config.encoder
        whisper.check_positions(weights, family.positions, e.positions, e.width)
    rules = tuple(family.rules(weights, source.config))
    if source.decoder.tied:
        names = {rule.ours: rule.theirs for rule in rules}
        head, embedding = names["decoder/lm_head"], names["decoder/embedding"]
        llama.check_tied(weights, head, embedding)
        ignored.append(head)
    return import_params(_padded(rules), weights, shapes, shardings, ignored, convert)


def _padded(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """`rules`, of which those of the vocabulary take the first rows of theirs: it may be padded."""
    rows = ("decoder/embedding", "decoder/lm_head")
    return tuple(
        dataclasses.replace(rule, first_rows=True) if rule.ours in rows else rule for rule in rules
    )


_FAMILIES = {
    "glmasr": GLM_ASR,
    "granite_speech": GRANITE_SPEECH,
    "qwen3_asr": QWEN3_ASR,
    "voxtral": VOXTRAL,
}
