"""Tiny speech LLMs, and what `transformers` makes of them (tests/golden/make_speech_llms.py)."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import Heads
from mtp_jax.data import Batch
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import build
from mtp_jax.models.params import merge

GOLDEN = Path(__file__).parent / "golden"
# Language and context that the golden texts were told.
TOLD = {
    "voxtral": ("de", ""),
    "qwen3_asr": ("de", "the and"),
    "glmasr": ("", ""),
    "granite_speech": ("", ""),
}
NAMES = tuple(TOLD)


@functools.cache
def golden_runner(name: str) -> Runner:
    """A golden model."""
    return load(open_model_folder(GOLDEN / name))


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    """Of transformers."""
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return dict(arrays)


def batch_of(name: str, rows: slice = slice(None), padding: int = 0) -> Batch:
    """Some rows of the golden audio, with so many samples of noise behind the longest."""
    e = expected(name)
    audio, samples = e["audio"][rows], e["samples"][rows]
    beyond = np.arange(audio.shape[1]) >= samples[:, None]
    audio = np.where(beyond, 99, audio)[:, : samples.max()]
    audio = np.pad(audio, ((0, 0), (0, padding)), constant_values=-77)
    return Batch(
        audio=audio.astype(np.int16),
        audio_length=samples,
        tokens=np.zeros((len(samples), 0), np.int32),
        token_length=np.zeros(len(samples), np.int32),
        index=np.arange(len(samples), dtype=np.int32),
    )


def start_of(name: str, told: bool) -> tuple[int, ...]:
    """The tokens before a text, with language and context if they are `told`."""
    runner = golden_runner(name)
    prompt = runner.model.vocabulary.speech
    assert prompt is not None
    language, context = TOLD[name] if told else ("", "")
    return prompt.start_tokens(language, earlier=tuple(runner.tokenizer.encode(context)))


def told(name: str, batch: Batch) -> Batch:
    """`batch`, whose rows are told a language, and a context."""
    start = np.array(start_of(name, True), np.int32)
    return batch._replace(start=np.tile(start, (len(batch.index), 1)))


def texts(tokens: jax.Array, length: jax.Array, most: int) -> np.ndarray:
    """int[B, most], -1 beyond the end, as the golden ones are."""
    real = np.arange(most) < np.asarray(length)[:, None]
    return np.where(real, np.asarray(tokens)[:, :most], -1)


@functools.cache
def golden_with_heads(name: str, count: int) -> Runner:
    """A golden model with heads."""
    return with_heads(golden_runner(name), count)


def with_heads(runner: Runner, count: int) -> Runner:
    """A model with so many latent heads, some of whose drafts are right."""
    model = runner.model
    config = dataclasses.replace(model.config, heads=Heads("latent", count))
    width = config.decoder.width
    noise = np.random.default_rng(4).normal(size=(count - 1, width, width)) / width**0.5
    kernel = jnp.asarray(np.eye(width) + 0.3 * noise, jnp.float32)
    params = merge(runner.params, {"heads": {"kernel": kernel}})
    return Runner(build(config, model.vocabulary), params, runner.tokenizer, runner.mesh)


def change(folder: Path, file: str, **fields: Any) -> None:
    """Changes fields of a JSON file; ``group__field`` is one of a group."""
    values = json.loads((folder / file).read_text())
    for name, value in fields.items():
        group, _, field = name.partition("__")
        if field:
            values[group][field] = value
        else:
            values[name] = value
    (folder / file).write_text(json.dumps(values))
