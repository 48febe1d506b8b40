"""Between `Config` and the nested dictionaries of config files and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtp_jax.config.checks import ConfigError, check
from mtp_jax.config.model import (
    Adaptor,
    Decoder,
    Encoder,
    FrontEnd,
    Heads,
    Whisper,
    WhisperDecoder,
)
from mtp_jax.config.run import (
    Augment,
    Data,
    Evaluation,
    Loss,
    Mesh,
    Mwer,
    Optim,
    Pretrained,
    Tokenizer,
    Train,
)
from mtp_jax.config.speech_llm import SpeechLlm


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole.

    Attributes:
        seed: fixes initialisation, data order and augmentation.
        init_from: workdir or exported folder of a model to begin with: its sizes, its tokenizer and
            every parameter that fits are taken over; heads of another kind, number or
            layers are new.
    """

    seed: int = 0
    init_from: str = ""
    pretrained: Pretrained = Pretrained()
    front_end: FrontEnd = FrontEnd()
    augment: Augment = Augment()
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    whisper: Whisper = Whisper()
    encoder: Encoder = Encoder()
    adaptor: Adaptor = Adaptor()
    decoder: Decoder = Decoder()
    whisper_decoder: WhisperDecoder = WhisperDecoder()
    speech_llm: SpeechLlm = SpeechLlm()
    heads: Heads = Heads()
    loss: Loss = Loss()
    mwer: Mwer = Mwer()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        check(
            self.loss.ctc > 0 or not self.adaptor.ctc_compression,
            "adaptor.ctc_compression",
            "needs config.loss.ctc above 0",
        )
        check(
            self.data.text != "greedy" or bool(self.pretrained.model),
            "data.text",
            "('greedy') needs config.pretrained.model, which writes it",
        )
        check(
            not (self.mwer.all_heads and self.heads.vocabulary),
            "mwer.all_heads",
            "needs heads that draft every token: set config.heads.vocabulary to 0",
        )
        check(
            not (self.mwer.all_heads and self.heads.serial),
            "mwer.all_heads",
            "needs heads that draft independently: config.heads.kind must not be 'serial'",
        )
        check(
            not self.heads.serial or self.extends_finished or bool(self.pretrained.model),
            "heads.kind",
            "('serial') needs a finished model to be added to: set config.pretrained.model to a"
            " Whisper or a speech LLM",
        )
        check(
            not self.tokenizer.retrained or bool(self.init_from),
            "tokenizer.retrained",
            "needs config.init_from; a run of its own trains its tokenizer anyway",
        )
        check(
            self.whisper.present or not self.whisper_decoder.present,
            "whisper_decoder.layers",
            "needs config.whisper, the encoder that it attends to",
        )
        check(
            not (self.whisper.present and self.speech_llm.present),
            "speech_llm.family",
            "excludes config.whisper: a speech LLM has an encoder of its own",
        )
        if not self.whisper.present:
            return
        check(
            self.front_end.flavour == "whisper",
            "front_end.flavour",
            "must be 'whisper' for a Whisper encoder",
        )
        window, buckets = self.whisper.positions / 50, (self.data, self.evaluation)
        longest = max(b.bucket_seconds[-1] for b in buckets if b.bucket_seconds)
        check(
            longest <= window,
            "data.bucket_seconds",
            f"({longest:g} at most) must not exceed Whisper's window of {window:g} s",
        )

    @property
    def extends_finished(self) -> bool:
        """Whether the model is a finished one, a Whisper or speech LLM, and what is added to it."""
        return self.whisper_decoder.present or self.speech_llm.present


def to_config_dict(config: Config) -> ConfigDict:
    """Every field of `config`, open to overrides from the command line."""
    return ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Builds the `Config` that `values` describes.

    Args:
        values: nested mapping, a `ConfigDict` or what ``json.loads`` gives.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, by full name.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return typing.cast(Config, _build(Config, values, prefix="config"))


# Fields that saved configs may have: what they are called now, or nothing.
_RETIRED = {
    "adaptor.training_room": "adaptor.training_capacity",
    "train.explosion": "train.max_loss_ratio",
    "evaluation.ctc_width": "evaluation.draft_width",
    "evaluation.beam_tau": "",
    "mwer.tau": "",
    "mwer.search_heads": "",
}


def from_saved(values: Mapping[str, Any]) -> Config:
    """`from_config_dict` of what an earlier version may have saved; raises the same."""
    groups = {k: dict(v) if isinstance(v, Mapping) else v for k, v in dict(values).items()}
    for old, new in _RETIRED.items():
        group, field = old.split(".")
        if isinstance(groups.get(group), dict) and field in groups[group]:
            value = groups[group].pop(field)
            if new:
                groups[group].setdefault(new.split(".")[1], value)
    return from_config_dict(groups)


def check_field(path: str) -> None:
    """Checks that a config has a field, or a group of fields, such as ``optim.steps``.

    Raises:
        ConfigError: it has not; the message names the nearest, or what it is called now.
    """
    cls, prefix = Config, "config"
    for key in path.split("."):
        _check_field(cls, key, prefix)
        cls, prefix = typing.get_type_hints(cls)[key], f"{prefix}.{key}"


def _check_field(cls: type, key: str, prefix: str) -> None:
    fields = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    if key in fields:
        return
    name = f"{prefix}.{key}"
    if now := _RETIRED.get(name.removeprefix("config.")):
        hint = f"it is config.{now} now"
    elif close := difflib.get_close_matches(key, list(fields), n=1):
        hint = f"did you mean {prefix}.{close[0]}?"
    else:
        hint = f"it has {', '.join(fields)}" if fields else f"{prefix} is one value"
    raise ConfigError(f"{name} is not a field: {hint}")


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix} must be a group of fields, not {values!r}")
    for key in values:
        _check_field(cls, str(key), prefix)
    fields = typing.get_type_hints(cls)
    return cls(**{key: _value(fields[key], v, f"{prefix}.{key}") for key, v in values.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, name)
    if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{name} must be a tuple, not {value!r}")
        return tuple(_value(typing.get_args(hint)[0], item, name) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} must be of type {hint.__name__}, not {value!r}")
    return value


def differences(ours: Config, theirs: Config) -> list[str]:
    """Names of the fields in which two configs differ, as ``optim.steps: 10 -> 20``."""

    def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in group.items():
            if isinstance(value, Mapping):
                out |= flat(value, f"{prefix}{key}.")
            else:
                out[prefix + key] = value
        return out

    a, b = flat(dataclasses.asdict(ours)), flat(dataclasses.asdict(theirs))
    return [f"{key}: {a[key]!r} -> {b[key]!r}" for key in a if a[key] != b[key]]
