"""What every family of released speech LLMs is described by, and what their tables are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mtp_jax.config import Decoder, FrontEnd, SpeechLlm
from mtp_jax.pretrained import whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule
from mtp_jax.pretrained.weights import Weights, open_weights


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
class Family:
    """One kind of model.

    Attributes:
        describe: reads its config.json.
        rules: the tables of its parts, below ``encoder/``, ``projector/`` and ``decoder/``, of what
            is in its files and of its config.
        positions: the name of a stored table of positions, which must be the one that is computed.
        ignored: patterns of tensors that need not be used.
        open: opens the weights in a folder.
        released: models on the Hub by name, and what their config.json says beyond `describe`'s
            defaults; ``eos_token_id`` may be that of generation_config.json.
        describe_released: `describe` of these, where it looks at more than config.json.
    """

    describe: Callable[[Fields], SpeechLlmSource]
    rules: Callable[[Weights, SpeechLlm], Iterable[Rule]]
    positions: str = ""
    ignored: tuple[str, ...] = ()
    open: Callable[[Path], Weights] = open_weights
    released: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    describe_released: Callable[[Fields], SpeechLlmSource] | None = None


def below(part: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """A part's table, in the tree of the whole model."""
    return tuple(dataclasses.replace(rule, ours=f"{part}/{rule.ours}") for rule in rules)


def group(config: Fields, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
    """A group of fields of config.json, over what is meant where it lacks one."""
    values = config.get(name, {})
    if not isinstance(values, Mapping):
        raise PretrainedError(f"{config.where}: {name} is no object: download it again")
    given = {key: value for key, value in values.items() if value is not None}
    return Fields(config.where, {**(defaults or {}), **given})


def stacked(audio: Fields, positions: int) -> int:
    """How many neighbouring states of the encoder become one row, where its config implies it.

    Args:
        audio: with ``intermediate_size``, which is the width of a row, and ``hidden_size``.
        positions: in a window, of which whole rows must come.
    """
    stack, rest = divmod(audio.integer("intermediate_size"), audio.integer("hidden_size"))
    if rest or positions % stack:
        raise PretrainedError(
            f"{audio.where}: audio_config.intermediate_size is no whole number of hidden_size, or"
            " does not divide the positions: choose another model"
        )
    return stack


def linear(ours: str, theirs: str, bias: bool) -> list[Rule]:
    """The table of a `Linear`."""
    rules = whisper.linear_rules(ours, theirs)
    return rules if bias else rules[:1]
