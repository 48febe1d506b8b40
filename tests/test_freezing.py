"""What is frozen stays, bit for bit, and what is imported never reaches a checkpoint; likewise what
detached heads leave alone."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.config import Config, ConfigError, Decoder, Encoder, FrontEnd, Heads, Lora, Mesh, Optim
from mtp_jax.data import Batch
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path, matches, nested, split
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import init_state, loss_fn, make_train_step

V = 12
CONFIG = Config(
    front_end=FrontEnd(mel_bins=8),
    encoder=Encoder(subsampling=(4,), width=8, layers=1, heads=2, feedforward=1, kernel=3),
    decoder=Decoder(
        width=8,
        layers=1,
        query_heads=2,
        kv_heads=1,
        head_size=4,
        feedforward=8,
        lora=Lora(rank=2),
    ),
    heads=Heads("independent", 3),
)
PATTERNS = ("decoder/*", "encoder/subsampling*", "!*/lora_?")


def model(**optim) -> SpeechLlama:
    optim = {"steps": 10, "warmup_steps": 0, "freeze": PATTERNS} | optim
    return SpeechLlama(dataclasses.replace(CONFIG, optim=Optim(**optim)), Vocabulary(V, 1, 2))


def batch() -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        audio=rng.integers(-3000, 3000, (2, 3200)).astype(np.int16),
        audio_length=np.array([3200, 2000], np.int32),
        tokens=np.array([[4, 5, 6, 2], [7, 2, 0, 0]], np.int32),
        token_length=np.array([4, 2], np.int32),
        index=np.array([0, 1], np.int32),
    )


def stepped(model, steps=2, **given):
    """States before and after some steps, on the host."""
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    optimizer = make_optimizer(model.config.optim)
    state, shardings = init_state(model, optimizer, mesh, **given)
    before = jax.device_get(state)
    step = make_train_step(model, optimizer, shardings)
    for _ in range(steps):
        state, _ = step(state, batch())
    return before, state, shardings


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_what_is_frozen_stays_and_the_rest_moves(algorithm):
    before, after, _ = stepped(model(algorithm=algorithm))
    is_frozen = matches(PATTERNS)
    old, new = by_path(before.model_params), by_path(after.model_params)
    assert old.keys() == new.keys()
    assert any("lora_b" in path for path in by_path(before.params))
    for path in old:
        assert np.array_equal(old[path], new[path]) == is_frozen(path), path
    assert not any(is_frozen(path) for path in by_path(before.params))


def test_a_rate_of_nothing_moves_nothing_and_a_tenth_moves_a_tenth():
    whole, some = model(freeze=()), model(freeze=(), rates=("decoder/*=0", "heads/*=0.1"))
    before, fast, _ = stepped(whole, steps=1)
    _, slow, _ = stepped(some, steps=1)
    old, fast, slow = (by_path(s.model_params) for s in (before, fast, slow))
    moved = {path.split("/")[0] for path in old if np.any(fast[path] != old[path])}
    assert moved > {"decoder", "heads"}, "at the full rate both move, and others"
    for path in old:
        factor = {"decoder": 0.0, "heads": 0.1}.get(path.split("/")[0], 1.0)
        np.testing.assert_allclose(
            slow[path] - old[path], factor * (fast[path] - old[path]), rtol=1e-3, atol=2e-7
        )


def test_heads_start_as_the_lm_head_that_was_given():
    before, *_ = stepped(model(), steps=0)
    embedding = before.model_params["decoder"]["embedding"] + 1
    given = {"decoder": {"embedding": embedding}}
    before, *_ = stepped(model(), steps=0, initial=given)
    np.testing.assert_array_equal(before.model_params["decoder"]["embedding"], embedding)
    for kernel in before.model_params["heads"]["kernel"]:
        np.testing.assert_array_equal(kernel, embedding.T)


def test_checkpoints_leave_the_imported_out_and_restoring_brings_it_back(tmp_path):
    start, *_ = stepped(model(), steps=0)
    imported, _ = split(start.model_params, lambda path: path.startswith("decoder/layers/gate/k"))
    before, after, shardings = stepped(model(), steps=0, imported=imported)
    moved = {
        part: jax.tree.map(
            lambda x: jax.device_put(np.asarray(x) + 1, x.sharding), getattr(after, part)
        )
        for part in ("step", "params", "frozen", "opt_state")
    }
    after = after.replace(**moved)
    assert by_path(before.imported).keys() == by_path(imported).keys()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(after)
        checkpoints.save_best(after, 1.0)
        checkpoints.wait()
        restored = checkpoints.restore(before, shardings)
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    written = [file.read_text() for file in tmp_path.rglob("_METADATA")]
    assert len(written) == 2
    for names in written:
        assert "'layers', 'up', 'kernel'" in names
        assert "'layers', 'gate', 'kernel'" not in names


def test_nothing_left_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"config\.optim\.freeze leaves nothing to train"):
        stepped(model(freeze=("*",)), steps=0)


@pytest.mark.parametrize("rate", ["decoder/*", "decoder/*=", "decoder/*=-1", "a=b"])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ConfigError, match=r"config\.optim\.rates holds"):
        Optim(rates=(rate,))


@functools.cache
def drawn(model: SpeechLlama):
    """Parameters that are the same in all models that have them."""
    boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        return rng.normal(path.endswith("scale"), 0.2, shape).astype(np.float32)

    return nested({path: draw(path, x.shape) for path, x in by_path(nn.unbox(boxed)).items()})


@functools.cache
def gradients(heads: Heads, tied: bool):
    """Of the loss, by path."""
    decoder = dataclasses.replace(CONFIG.decoder, lora=Lora(), tied=tied)
    model = SpeechLlama(
        dataclasses.replace(CONFIG, heads=heads, decoder=decoder), Vocabulary(V, 1, 2)
    )
    loss = functools.partial(loss_fn, model, batch=batch(), key=None)
    return by_path(jax.jit(jax.grad(loss, has_aux=True))(drawn(model))[0])


# Of the fast ones, any two of the three are there in all pairs.
@pytest.mark.parametrize(
    ("kind", "layers", "tied"),
    [
        ("latent", 0, True),
        ("latent", 1, False),
        ("independent", 0, False),
        ("independent", 1, True),
        pytest.param("latent", 0, False, marks=pytest.mark.slow),
        pytest.param("latent", 1, True, marks=pytest.mark.slow),
        pytest.param("independent", 0, True, marks=pytest.mark.slow),
        pytest.param("independent", 1, False, marks=pytest.mark.slow),
    ],
)
def test_detached_heads_learn_and_leave_the_rest_to_head_1(kind, layers, tied):
    """Their gradients are as ever; all others are those of the same model with one head."""
    joint, detached = (
        gradients(Heads(kind, 3, layers, detached=detached), tied) for detached in (False, True)
    )
    alone = gradients(Heads(count=1), tied)
    assert alone.keys() == {path for path in detached if not path.startswith("heads/")}
    for path, gradient in alone.items():
        np.testing.assert_allclose(detached[path], gradient, rtol=1e-4, atol=1e-6, err_msg=path)
    for path in detached.keys() - alone.keys():
        assert np.any(detached[path])
        np.testing.assert_allclose(detached[path], joint[path], rtol=1e-4, atol=1e-6)
    inside = "decoder/layers/attention/query/kernel"
    assert not np.allclose(joint[inside], alone[inside], rtol=1e-2)
