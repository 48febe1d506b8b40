"""Two views of an utterance in training: what they share, and what sets them apart."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from mtp_jax.config import Augment, Config, Decoder, Encoder, FrontEnd, Heads, Loss
from mtp_jax.data import Batch
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.step import loss_fn

STILL = Augment(freq_masks=0, time_masks=0)
CONFIG = Config(
    front_end=FrontEnd(mel_bins=8),
    encoder=Encoder(
        subsampling=(4,), width=8, layers=1, heads=2, feedforward=1, kernel=3, dropout=0.0
    ),
    decoder=Decoder(
        width=8, layers=1, query_heads=2, kv_heads=1, head_size=4, feedforward=8, dropout=0.0
    ),
    heads=Heads(count=2),
)


def batch() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        audio=rng.integers(-3000, 3000, (3, 6400)).astype(np.int16),
        audio_length=np.array([6400, 4000, 0], np.int32),
        tokens=np.array([[4, 5, 6, 2], [7, 2, 0, 0], [0, 0, 0, 0]], np.int32),
        token_length=np.array([4, 2, 0], np.int32),
        index=np.array([0, 1, -1], np.int32),
    )


def loss(consistency: float, key: jax.Array | None, **changes: Any) -> tuple[Any, Any]:
    """Loss and scalars, and gradients by path."""
    config = dataclasses.replace(CONFIG, loss=Loss(ctc=0.5, ctc_consistency=consistency), **changes)
    model = SpeechLlama(config, Vocabulary(12, 1, 2))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    of = functools.partial(loss_fn, model, batch=batch(), key=key)
    found, gradients = jax.jit(jax.value_and_grad(of, has_aux=True))(params)
    return found, by_path(gradients)


def test_views_that_are_the_same_change_nothing() -> None:
    """Loss, gradients and every scalar are those of one view."""
    (one, scalars), gradients = loss(0.0, jax.random.key(1), augment=STILL)
    (two, doubled), same = loss(0.3, jax.random.key(1), augment=STILL)
    assert float(two) == pytest.approx(float(one), rel=1e-5)
    assert doubled.pop("ctc_consistency") == 0
    assert doubled.keys() == scalars.keys()
    for name, value in scalars.items():
        assert float(doubled[name]) == pytest.approx(float(value), rel=1e-5), name
    for path, gradient in gradients.items():
        np.testing.assert_allclose(same[path], gradient, rtol=1e-3, atol=1e-6, err_msg=path)


def test_views_differ_in_augmentation_and_in_dropout() -> None:
    dropped = dataclasses.replace(CONFIG.encoder, dropout=0.3)
    for changes in ({"augment": Augment()}, {"augment": STILL, "encoder": dropped}):
        (total, scalars), _ = loss(0.3, jax.random.key(1), **changes)
        unlike = float(scalars["ctc_consistency"])
        assert unlike > 0
        heads = float(scalars["head_1"]) + 0.5 * float(scalars["head_2"])
        ctc = 0.5 * (float(scalars["ctc"]) + 0.3 * unlike)
        assert float(total) == pytest.approx(heads + ctc, rel=1e-5)


def test_evaluation_sees_one_view() -> None:
    (one, scalars), _ = loss(0.3, None)
    (other, _), _ = loss(0.0, None)
    assert one == other
    assert "ctc_consistency" not in scalars
