"""Sizes of published models, so that a program can be planned without a download.

From their config.json on the Hub. What is not here is read from the model's folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtp_jax.config import Config, ConfigError, Decoder, RopeScaling, Whisper, WhisperDecoder
from mtp_jax.pretrained.sizes import with_speech_llm
from mtp_jax.pretrained.speech_llm import released_architecture, released_models
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

_SIZES = (
    "width",
    "layers",
    "query_heads",
    "kv_heads",
    "head_size",
    "feedforward",
    "rope_theta",
    "rope_scaling",
    "tied",
)
_LLAMA_32 = RopeScaling("llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA_31 = dataclasses.replace(_LLAMA_32, factor=8.0)


@dataclasses.dataclass(frozen=True)
class Llama:
    """A decoder, and the rows of its embedding."""

    decoder: Decoder
    vocab_size: int


def _llama(vocab_size: int, *sizes: int, theta: float, tied: bool = True) -> Llama:
    given = dict(zip(_SIZES, sizes, strict=False))
    return Llama(Decoder(**given, rope_theta=theta, tied=tied), vocab_size)  # type: ignore[arg-type]


def _scaled(llama: Llama, scaling: RopeScaling) -> Llama:
    return dataclasses.replace(
        llama, decoder=dataclasses.replace(llama.decoder, rope_scaling=scaling)
    )


LLAMAS = {
    "HuggingFaceTB/SmolLM2-135M": _llama(49152, 576, 30, 9, 3, 64, 1536, theta=1e5),
    "HuggingFaceTB/SmolLM2-360M": _llama(49152, 960, 32, 15, 5, 64, 2560, theta=1e5),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(49152, 2048, 24, 32, 32, 64, 8192, theta=1.3e5),
    "meta-llama/Llama-3.2-1B": _scaled(
        _llama(128256, 2048, 16, 32, 8, 64, 8192, theta=5e5), _LLAMA_32
    ),
    "meta-llama/Llama-3.1-8B": _scaled(
        _llama(128256, 4096, 32, 32, 8, 128, 14336, theta=5e5, tied=False), _LLAMA_31
    ),
}


@dataclasses.dataclass(frozen=True)
class WhisperSize:
    """A whole Whisper.

    Attributes:
        encoder, decoder: sizes.
        mel_bins: Z.
        vocab_size: V; it tells English models from multilingual ones, and large-v3 from both.
    """

    encoder: Whisper
    decoder: WhisperDecoder
    mel_bins: int
    vocab_size: int


ENGLISH, MULTILINGUAL, CANTONESE = 51_864, 51_865, 51_866  # the last has a language more


def _whisper(
    width: int, layers: int, text_layers: int, vocab_size: int, mel_bins: int = 80
) -> WhisperSize:
    heads = width // 64
    return WhisperSize(
        encoder=Whisper(width=width, layers=layers, heads=heads),
        decoder=WhisperDecoder(width=width, layers=text_layers, heads=heads),
        mel_bins=mel_bins,
        vocab_size=vocab_size,
    )


_SMALLER = (("tiny", 384, 4), ("base", 512, 6), ("small", 768, 12), ("medium", 1024, 24))
WHISPERS = {
    **{f"openai/whisper-{x}": _whisper(d, n, n, MULTILINGUAL) for x, d, n in _SMALLER},
    **{f"openai/whisper-{x}.en": _whisper(d, n, n, ENGLISH) for x, d, n in _SMALLER},
    "openai/whisper-large-v2": _whisper(1280, 32, 32, MULTILINGUAL),
    "openai/whisper-large-v3": _whisper(1280, 32, 32, CANTONESE, 128),
    "openai/whisper-large-v3-turbo": _whisper(1280, 32, 4, CANTONESE, 128),
    "distil-whisper/distil-large-v3": _whisper(1280, 32, 2, CANTONESE, 128),
}


def whisper_tokens(vocab_size: int) -> WhisperTokens:
    """The special tokens of a published vocabulary, languages without their codes.

    EOS is the token before ``start``.
    """
    languages = 100 if vocab_size == CANTONESE else 99  # the English models' tokenizers have them
    start = vocab_size - 1501 - 6 - languages - 1  # times, tasks and marks
    translate = start + 1 + languages
    multilingual = vocab_size != ENGLISH
    return WhisperTokens(
        start=start,
        previous=translate + 3,
        no_speech=translate + 4,
        no_timestamps=translate + 5,
        languages=tuple((str(t), t) for t in range(start + 1, translate) if multilingual),
        transcribe=translate + 1 if multilingual else -1,
        translate=translate if multilingual else -1,
        suppressed=(start, *range(translate, translate + 5)),
        suppressed_first=(220, start - 1),
    )


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of the tokenizer of a model on the Hub.

    Attributes:
        vocab_size: rows of the decoder's embedding; 0 if they are not known.
        ends: of a speech LLM: the tokens that end a text, EOS first.
    """

    vocab_size: int = 0
    ends: tuple[int, ...] = ()


def with_published_sizes(config: Config) -> tuple[Config, Published]:
    """`config` with the sizes of the models on the Hub that it begins with.

    A whole model may go by the last part of its name. What is a folder is left alone.

    Returns:
        The config, which names none of them any more, and what is known of the tokenizer.

    Raises:
        ConfigError: one of them is not known here.
    """
    parts, known = config.pretrained, Published()
    if parts.model and not Path(parts.model).expanduser().exists():
        name = _found("model", parts.model, [*WHISPERS, *released_models()])
        alone: dict[str, Any] = {
            "pretrained": dataclasses.replace(parts, model=""),
            "data": dataclasses.replace(config.data, text="as_is"),  # "greedy" needs a model
        }
        if name not in WHISPERS:
            source, ends = released_architecture(name)
            config = dataclasses.replace(with_speech_llm(config, source), **alone)
            return config, Published(source.rows, ends)
        whole = WHISPERS[name]
        config = dataclasses.replace(
            _with_encoder(config, whole),
            whisper_decoder=dataclasses.replace(whole.decoder, lora=config.whisper_decoder.lora),
            **alone,
        )
        return config, Published(whole.vocab_size)
    if parts.encoder.startswith("hf://"):
        config = _with_encoder(config, WHISPERS[_found("encoder", parts.encoder, WHISPERS)])
        parts = dataclasses.replace(parts, encoder="")
        config = dataclasses.replace(config, pretrained=parts)
    if parts.decoder.startswith("hf://"):
        llama = LLAMAS[_found("decoder", parts.decoder, LLAMAS)]
        sizes = {f: getattr(llama.decoder, f) for f in _SIZES}
        decoder, known = dataclasses.replace(config.decoder, **sizes), Published(llama.vocab_size)
        parts = dataclasses.replace(parts, decoder="")
        config = dataclasses.replace(config, decoder=decoder, pretrained=parts)
    return config, known


def _with_encoder(config: Config, theirs: WhisperSize) -> Config:
    """`config` with a Whisper encoder of these sizes, which runs as its own was to."""
    own: dict[str, Any] = {
        name: getattr(config.whisper, name) for name in ("padded", "cached", "silence", "lora")
    }
    return dataclasses.replace(
        config,
        whisper=dataclasses.replace(theirs.encoder, **own),
        front_end=dataclasses.replace(
            config.front_end, flavour="whisper", mel_bins=theirs.mel_bins
        ),
    )


def _short(name: str) -> str:
    """The last part of a name, without the layout of its files or the date of its release."""
    return re.sub(r"(-hf|-\d{4})$", "", name.split("/")[-1].lower())


def _found(field: str, source: str, known: Iterable[str]) -> str:
    """The one of the `known` names that a source means."""
    name = source.removeprefix("hf://").strip("/")
    known = list(known)
    if field == "model":
        owner = name.rpartition("/")[0]
        candidates = [full for full in known if owner in ("", full.split("/")[0])]
        name = {_short(full): full for full in candidates}.get(_short(name), name)
    if name not in known:
        raise ConfigError(
            f"config.pretrained.{field}={source} is not among the models whose sizes are known"
            f" ({', '.join(known)}): give the folder of its config.json"
        )
    return name
