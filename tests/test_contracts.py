"""The contract of encoders and decoders, on every one that there is, in each of its forms."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtp_jax.models
from mtp_jax.config import (
    AudioEncoder,
    Config,
    Data,
    Decoder,
    Encoder,
    FrontEnd,
    Heads,
    Lora,
    RopeScaling,
    Whisper,
)
from mtp_jax.config import WhisperDecoder as WhisperDecoderConfig
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.decoders.whisper import WhisperDecoder
from mtp_jax.models.encoders.conformer import Conformer
from mtp_jax.models.encoders.granite import GraniteEncoder
from mtp_jax.models.encoders.qwen import QwenEncoder
from mtp_jax.models.encoders.whisper import WhisperEncoder
from mtp_jax.models.kv_cache import CrossCache, KVCache
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens
from tests.contracts import (
    DECODER_LAWS,
    ENCODER_LAWS,
    DecoderCase,
    EncoderCase,
    draw_params,
)

CONFORMER = functools.partial(
    Encoder, subsampling_kernel=3, width=8, layers=2, heads=2, feedforward=2, kernel=5
)
WHISPER = Whisper(width=8, layers=2, heads=2, positions=20)
QWEN = AudioEncoder(
    "qwen", width=8, layers=2, heads=2, feedforward=32, channels=3, chunk=8, window=16
)
GRANITE = dataclasses.replace(QWEN, kind="granite", chunk=2, window=8, kernel=3, labels=5)
ENCODERS = {
    "conformer": Conformer(CONFORMER(subsampling=(2, 2))),
    "conformer, scanned": Conformer(CONFORMER(subsampling=(3,), scan_layers=True)),
    "whisper": WhisperEncoder(WHISPER),
    "whisper, rotary positions": WhisperEncoder(WHISPER, rotary=2),
    "qwen": QwenEncoder(QWEN),
    "granite": GraniteEncoder(GRANITE),
}

LLAMA = functools.partial(Decoder, width=16, layers=2, head_size=6, feedforward=24)
LORA = Lora(rank=2, alpha=3.0)
GROUPED = LLAMA(query_heads=4, kv_heads=2)
FACTORS = LLAMA(
    query_heads=4,
    kv_heads=2,
    qk_norm=True,
    attention_scale=0.2,
    embedding_multiplier=3.0,
    residual_multiplier=0.5,
    logits_scaling=2.0,
)
WHISPER_TEXT = functools.partial(WhisperDecoderConfig, width=16, layers=2, heads=2, positions=40)
DECODERS = {
    "grouped queries": (GROUPED, False),
    "a key for each query, untied, scanned": (
        LLAMA(query_heads=2, kv_heads=2, tied=False, scan_layers=True),
        False,
    ),
    "long contexts": (
        LLAMA(query_heads=4, kv_heads=1, rope_scaling=RopeScaling("linear", factor=4.0)),
        False,
    ),
    "low-rank updates": (LLAMA(query_heads=4, kv_heads=2, lora=LORA), False),
    "laid out for decoding": (GROUPED, True),
    "laid out, low-rank updates": (LLAMA(query_heads=4, kv_heads=2, lora=LORA), True),
    "norms of queries and keys, factors": (FACTORS, False),
    "laid out, norms of queries and keys, factors": (FACTORS, True),
    "whisper": (WHISPER_TEXT(), False),
    "whisper, laid out, low-rank updates": (WHISPER_TEXT(lora=LORA), True),
    "whisper, with timestamps": (WHISPER_TEXT(timestamps=True), False),
}


@functools.cache
def encoder(name: str) -> EncoderCase:
    module, width = ENCODERS[name], 5
    stacked = GRANITE.chunk if name == "granite" else 1
    blank = EncoderCase(lambda x, length: (x, length), width, stacked)
    params = draw_params(module, blank.features(), blank.lengths)
    encode = jax.jit(lambda x, n: module.apply({"params": params}, x, n))
    return EncoderCase(encode, width, stacked)


@functools.cache
def decoder(name: str) -> DecoderCase:
    config, is_laid_out = DECODERS[name]
    if isinstance(config, WhisperDecoderConfig) and config.timestamps:
        return whisper_with_timestamps(config)
    if isinstance(config, WhisperDecoderConfig):
        return whisper_decoder(config, is_laid_out)
    model = Llama(config, vocab_size=11)
    x = np.zeros((1, 2, config.width), np.float32)
    params = draw_params(model, x, np.ones((1, 2), bool))
    if is_laid_out:
        params = for_decoding({"decoder": params}, config.lora)["decoder"]

    @jax.jit
    def full(x: jax.Array, real: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x, real)[0]

    extend = jax.jit(lambda *given: model.apply({"params": params}, *given))
    return DecoderCase(full, extend, model.empty_cache, config.width)


def whisper_decoder(config: WhisperDecoderConfig, is_laid_out: bool) -> DecoderCase:
    """All rows attend to the same audio, part of which is padding."""
    model = WhisperDecoder(config, vocab_size=11)
    audio = np.random.default_rng(5).normal(size=(1, 7, config.width)).astype(np.float32)
    heard = np.arange(7)[None] < 5

    def whole(model: WhisperDecoder, x: jax.Array, real: jax.Array) -> Any:
        return model(x, real, model.attend_to(audio, heard))

    x, one = np.zeros((1, 2, config.width), np.float32), np.ones((1, 2), bool)
    params = draw_params(_As(model, whole), x, one)["model"]
    if is_laid_out:
        params = for_decoding({"decoder": params}, config.lora)["decoder"]

    def cross(rows: int) -> CrossCache:
        spoilt = np.where(heard[..., None], audio, np.nan)
        made = model.apply({"params": params}, spoilt, heard, method="attend_to")
        return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), made)

    @jax.jit
    def full(x: jax.Array, real: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x, real, cross(len(x)))[0]

    extend = jax.jit(lambda *given: model.apply({"params": params}, *given)[:2])
    return DecoderCase(
        full, extend, lambda rows, slots: model.empty_cache(cross(rows), slots), config.width
    )


def whisper_with_timestamps(config: WhisperDecoderConfig) -> DecoderCase:
    """The tokens, most of them times, are fed to the recogniser, whose states tell its rules.

    Its whole pass is one call on an empty cache; `test_whisper_timestamps` has that without one.
    """
    size, special = 30, WhisperTokens(8, 9, 11, 10, timestamps=True)
    whole = Config(
        front_end=FrontEnd(flavour="whisper"),
        data=Data(bucket_seconds=(0.4,)),
        whisper=dataclasses.replace(WHISPER, width=config.width),
        whisper_decoder=config,
        heads=Heads(count=1),
    )
    model = WhisperRecogniser(whole, Vocabulary(size, 7, 7, whisper=special))
    audio = np.random.default_rng(5).normal(size=(1, 7, config.width)).astype(np.float32)
    text = np.zeros((1, 2), np.int32)
    params = draw_params(model, audio, np.array([5]), text, np.array([2]))
    given = {"params": params}

    def empty_cache(rows: int, slots: int) -> KVCache:
        encoded = model.apply(given, np.repeat(audio, rows, 0), np.full(rows, 5), method="encode")
        return model.apply(given, encoded, slots, method="cache")

    @jax.jit
    def extend(x: jax.Array, real: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        return model.apply(given, x[..., 0].astype(int), real, cache, method="extend_real")

    def full(x: jax.Array, real: jax.Array) -> jax.Array:
        return extend(x, real, empty_cache(*real.shape))[0]

    return DecoderCase(full, extend, empty_cache, 1, size)


class _As(nn.Module):
    """A module that runs a function of another."""

    model: nn.Module
    run: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.run(self.model, *args)


@pytest.mark.parametrize("law", ENCODER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str, law: Callable[[EncoderCase], None]) -> None:
    law(encoder(name))


@pytest.mark.parametrize("law", DECODER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str, law: Callable[[DecoderCase], None]) -> None:
    law(decoder(name))


def test_every_encoder_and_decoder_is_among_them() -> None:
    """The last class of a file is the model; `layout` is another form of decoders."""
    root = Path(mtp_jax.models.__file__).parent
    tested = {type(module).__name__ for module in (*ENCODERS.values(), Llama(GROUPED, 11))}
    tested.add(WhisperDecoder.__name__)
    models = set()
    for file in (*(root / "encoders").glob("*.py"), *(root / "decoders").glob("*.py")):
        classes = [
            node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)
        ]
        models |= {classes[-1].name} if classes else set()
    assert models == tested
