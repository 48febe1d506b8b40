"""Training steps that several runs share: each run would trace and compile its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mtp_jax.config import Config, Train


def shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """`mtp_jax.training.step.make_train_step`, which makes equal steps once.

    The optimizer is a function of the config. Steps with a spelling are never shared.
    """
    made: dict[Any, Any] = {}

    def make_once(model: Any, optimizer: Any, shardings: Any, spelling: Any = None) -> Any:
        if spelling is not None:
            return make(model, optimizer, shardings, spelling)
        key = (
            *(type(model), model.vocabulary, _of_steps(model.config)),
            *(jax.tree.structure(shardings), *jax.tree.leaves(shardings)),
        )
        if key not in made:
            made[key] = make(model, optimizer, shardings)
        return made[key]

    return make_once


def _of_steps(config: Config) -> Config:
    """A config without what only says when a run logs, saves and decodes dev, and how."""
    names = ("log_every", "dev_every", "checkpoint_every")
    often = {name: getattr(Train(), name) for name in names}
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, **often),
        evaluation=dataclasses.replace(config.evaluation, batch_sizes=(1,)),
    )
