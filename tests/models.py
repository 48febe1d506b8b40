"""A tiny model in a workdir, as training leaves it but untrained, for tests of what uses one."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Config, Data, Decoder, Encoder, Evaluation, Heads, Mesh, Tokenizer
from mtp_jax.data import grammar
from mtp_jax.distributed import sharding
from mtp_jax.models.build import make_model
from mtp_jax.tokenizer import Tokenizer as AnyTokenizer
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import init_state

CONFIG = Config(
    data=Data(bucket_seconds=(3.2,), max_tokens=12),
    tokenizer=Tokenizer(vocab_size=48),
    encoder=Encoder(width=16, layers=1, heads=2, kernel=3, feedforward=1),
    decoder=Decoder(width=16, layers=1, query_heads=2, head_size=8, feedforward=16),
    heads=Heads(count=3),
    evaluation=Evaluation(beams=2),
)


def tiny_workdir(path: Path, config: Config = CONFIG) -> Path:
    """Makes `path` the workdir of a model with random parameters."""
    workdir = Workdir(path)
    workdir.claim(config)
    texts = itertools.islice(grammar.sentences("train", 0), 300)
    tokenizer = AnyTokenizer.train(texts, path / "tokenizer.model", config.tokenizer.vocab_size)
    state, _ = init_state(
        make_model(config, tokenizer), make_optimizer(config.optim), sharding.make_mesh(Mesh())
    )
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), state.params
    )
    with Checkpoints(path) as checkpoints:
        checkpoints.save_best(dataclasses.replace(state, params=params), 50.0)
        checkpoints.wait()
    return path
