"""Fresh parameters of a `Recogniser`, their shapes and their shardings."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax.distributed import sharding
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.models.speech_features import encoded_width
from mtp_jax.models.speech_windows import min_frames


def init_params(model: Recogniser, key: jax.Array) -> Any:
    """Fresh parameters, in their annotations."""
    c = model.config
    frames = max(1, *c.encoder.subsampling)
    if c.speech_llm.present:
        frames *= c.speech_llm.projector.stack
    features = jnp.zeros((1, frames, encoded_width(c) or c.front_end.mel_bins))
    one = jnp.ones(1, jnp.int32)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, features, one * frames, tokens, one)["params"]
    if c.whisper.present or c.speech_llm.present:
        frames = min_frames(c) if c.speech_llm.present else 2
        mel = jnp.zeros((1, frames, c.front_end.mel_bins))
        params |= model.init(key, mel, one * frames, method="encode_speech")["params"]
    return params


def parameter_shapes(model: Recogniser, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Shapes of all parameters of `model`, and their shardings.

    Raises:
        sharding.MeshError: the mesh does not divide a parameter.
    """
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return nn.unbox(boxed), sharding.parameter_shardings(boxed, mesh)
