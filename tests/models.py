"""Tiny models in workdirs, as training leaves them but untrained, for tests of what uses one."""

from __future__ import annotations

import dataclasses
import itertools
import types
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import (
    Config,
    Data,
    Decoder,
    Encoder,
    Evaluation,
    FrontEnd,
    Heads,
    Mesh,
    Pretrained,
    Tokenizer,
)
from mtp_jax.data import grammar
from mtp_jax.distributed import sharding
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path, nested
from mtp_jax.pretrained.parts import digests
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.tokenizer import CTC_NAME
from mtp_jax.tokenizer import Tokenizer as AnyTokenizer
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import init_state
from tests.pretrained import GOLDEN_WHISPER

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


def whisper_workdir(path: Path, **groups: Any) -> Workdir:
    """Makes `path` the workdir of random heads for the golden Whisper, or of a CTC head as well.

    Args:
        path: of the workdir.
        groups: of the config, in place of its own.
    """
    own = Config(
        pretrained=Pretrained(model=str(GOLDEN_WHISPER)),
        front_end=FrontEnd(flavour="whisper"),
        data=Data(bucket_seconds=(0.4,), max_tokens=32, text="greedy"),
        heads=Heads(count=3, layers=1, detached=True, vocabulary=300),
    )
    config = with_sizes(dataclasses.replace(own, **groups))
    workdir = Workdir(path)
    workdir.claim(config)
    AnyTokenizer.load(GOLDEN_WHISPER).save(path)
    if labels := config.tokenizer.ctc_vocab_size:
        texts = itertools.islice(grammar.sentences("train", 0), 300)
        AnyTokenizer.train(texts, path / CTC_NAME, labels)
    tokenizer = AnyTokenizer.load(path)
    model = make_model(config, tokenizer)
    params = by_path(nn.unbox(jax.jit(lambda: init_params(model, jax.random.key(0)))()))
    rng = np.random.default_rng(3)
    added = {
        path: x if x.dtype == np.int32 else x + rng.normal(0, 0.3, x.shape).astype(np.float32)
        for path, x in params.items()
        if path.startswith(("heads/", "encoder/", "ctc/")) or "lora_" in path
    }
    workdir.record_pretrained(digests(config.pretrained), sorted(params.keys() - added.keys()))
    state = types.SimpleNamespace(step=0, params=nested(added), frozen={}, imported={})
    with Checkpoints(path) as checkpoints:
        checkpoints.save_best(cast(Any, state), 50.0)
        checkpoints.wait()
    return workdir
