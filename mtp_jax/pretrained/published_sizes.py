"""Sizes of published models, so that a program can be planned without a download.

From their config.json on the Hub. What is not here is read from the model's folder.
"""

from __future__ import annotations

import dataclasses

from mtp_jax.config import Config, ConfigError, Decoder, RopeScaling, Whisper

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
# The encoder, and its mel bins.
WHISPERS = {
    f"openai/whisper-{name}": (Whisper(width=width, layers=layers, heads=heads), bins)
    for name, width, layers, heads, bins in (
        ("tiny", 384, 4, 6, 80),
        ("base", 512, 6, 8, 80),
        ("small", 768, 12, 12, 80),
        ("medium", 1024, 24, 16, 80),
        ("large-v2", 1280, 32, 20, 80),
        ("large-v3", 1280, 32, 20, 128),
        ("large-v3-turbo", 1280, 32, 20, 128),
    )
}


def with_published_sizes(config: Config) -> tuple[Config, int]:
    """`config` with the sizes of the models on the Hub that it begins with.

    Returns:
        The config, which names none of them any more, and the size of the decoder's vocabulary; 0
        if it does not follow from it.

    Raises:
        ConfigError: one of them is not known here.
    """
    parts, size = config.pretrained, 0
    if parts.encoder.startswith("hf://"):
        theirs, bins = WHISPERS.get(name := _name(parts.encoder), (None, 0))
        if theirs is None:
            raise ConfigError(_unknown("encoder", name, tuple(WHISPERS)))
        ours = config.whisper
        whisper = dataclasses.replace(
            theirs, padded=ours.padded, cached=ours.cached, lora=ours.lora
        )
        front_end = dataclasses.replace(config.front_end, flavour="whisper", mel_bins=bins)
        parts = dataclasses.replace(parts, encoder="")
        config = dataclasses.replace(config, whisper=whisper, front_end=front_end, pretrained=parts)
    if parts.decoder.startswith("hf://"):
        llama = LLAMAS.get(name := _name(parts.decoder))
        if llama is None:
            raise ConfigError(_unknown("decoder", name, tuple(LLAMAS)))
        sizes = {f: getattr(llama.decoder, f) for f in _SIZES}
        decoder, size = dataclasses.replace(config.decoder, **sizes), llama.vocab_size
        parts = dataclasses.replace(parts, decoder="")
        config = dataclasses.replace(config, decoder=decoder, pretrained=parts)
    return config, size


def _name(source: str) -> str:
    return source.removeprefix("hf://").strip("/")


def _unknown(field: str, name: str, known: tuple[str, ...]) -> str:
    return (
        f"config.pretrained.{field}=hf://{name} is not among the models whose sizes are known"
        f" ({', '.join(known)}): give the folder of its config.json"
    )
