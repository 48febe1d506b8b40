"""A tiny whole Whisper, and what `transformers` makes of it (tests/golden/make_whisper.py)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.decoding import Decoded, Strategy
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.recogniser import Encoded, Recogniser, call
from mtp_jax.models.whisper import WhisperRecogniser
from tests.pretrained import GOLDEN_WHISPER

LIMIT = 24  # tokens of the golden texts


@functools.cache
def golden_runner() -> Runner:
    """The golden model."""
    return load(open_model_folder(GOLDEN_WHISPER))


@functools.cache
def expected() -> dict[str, np.ndarray]:
    """Of transformers."""
    with np.load(GOLDEN_WHISPER / "expected.npz") as arrays:
        return dict(arrays)


def encoder(runner: Runner) -> Callable[..., Encoded]:
    """What the encoder makes of the golden features, or of some rows of them."""

    @jax.jit
    def encoded(features: jax.Array, length: jax.Array) -> Encoded:
        hidden = call(Recogniser.encode_speech, runner.model, runner.params, features, length)
        encoded = call(Recogniser.encode, runner.model, runner.params, hidden, (length + 1) // 2)
        return call(WhisperRecogniser.detected, runner.model, runner.params, encoded)

    features = expected()["features"]
    return lambda rows=slice(None): encoded(
        features[rows], np.full(len(features[rows]), features.shape[1])
    )


def started(runner: Runner, encoded: Encoded, *args: Any) -> Encoded:
    """With other tokens before the text."""
    special = runner.model.vocabulary.whisper
    assert special is not None
    start = jnp.array(special.start_tokens(*args), jnp.int32)
    rows = jnp.broadcast_to(start, (len(encoded.audio), len(start)))
    return dataclasses.replace(encoded, start=rows)


def decode(
    runner: Runner, encoded: Encoded, strategy: Strategy, limit: int = LIMIT, **changed: Any
) -> Decoded:
    """Of all rows, under ``jit``; `changed` are decoder functions."""

    @jax.jit
    def run(params: Any, encoded: Encoded) -> Decoded:
        functions = bind_decoder(runner.model, params, encoded)._replace(**changed)
        return strategy.decode(functions, jnp.ones(len(encoded.audio), bool), limit)

    return run(runner.params, encoded)


def texts(decoded: Decoded, eos: int) -> np.ndarray:
    """int[B, L], EOS beyond the end, as the golden ones are."""
    real = np.arange(decoded.tokens.shape[1]) < np.asarray(decoded.length)[:, None]
    return np.where(real, decoded.tokens, eos)
