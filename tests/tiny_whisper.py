"""A tiny Whisper with drawn parameters, made of no files."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import (
    Config,
    Data,
    Evaluation,
    FrontEnd,
    Heads,
    Mesh,
    Whisper,
    WhisperDecoder,
)
from mtp_jax.distributed import sharding
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path, nested
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

# Behind eleven pieces of text, of which 2 is EOS. The number of tokens is odd, as Whisper's is.
WHISPER_TOKENS = WhisperTokens(
    start=11,
    previous=12,
    no_timestamps=13,
    no_speech=18,
    languages=(("en", 14), ("de", 15)),
    transcribe=16,
    translate=17,
    suppressed=(0, 1, 3, *range(11, 19)),
    suppressed_first=(10,),
)
WHISPER_WINDOW = 0.4  # seconds


def tiny_whisper(heads: Heads, **groups: Any) -> WhisperRecogniser:
    """A Whisper of 19 tokens and a window of `WHISPER_WINDOW`; `groups` of its config."""
    window = (WHISPER_WINDOW,)
    given = {"data": Data(bucket_seconds=window, max_tokens=20)} | groups
    config = Config(
        front_end=FrontEnd("whisper", mel_bins=8),
        whisper=Whisper(width=16, layers=2, heads=4, positions=round(50 * WHISPER_WINDOW)),
        whisper_decoder=WhisperDecoder(width=16, layers=2, heads=4, positions=40),
        heads=heads,
        evaluation=Evaluation(bucket_seconds=window),
        **given,
    )
    return WhisperRecogniser(config, Vocabulary(19, bos=11, eos=2, whisper=WHISPER_TOKENS))


def drawn_params(model: WhisperRecogniser, seed: int = 0) -> Any:
    """Parameters drawn large enough for texts, and what heads make of them, to vary."""
    shapes, _ = parameter_shapes(model, sharding.make_mesh(Mesh(data=1), jax.devices()[:1]))
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        x = rng.normal(size=shape.shape)
        if path == "heads/kernel":  # some of their drafts are right
            x = np.eye(shape.shape[-1]) + 0.3 * x / np.sqrt(shape.shape[-1])
        elif path.endswith(("kernel", "embedding")):
            x *= 2 / np.sqrt(shape.shape[-1 if path.endswith("embedding") else -2])
        else:
            x = 0.3 * x + path.endswith("scale")
        return jnp.asarray(x, jnp.float32)

    return nested({path: draw(path, x) for path, x in by_path(shapes).items()})
