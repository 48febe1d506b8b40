"""The optimizer: AdamW (Loshchilov and Hutter, 2019), warm-up, cosine decay, clipping."""

from __future__ import annotations

from typing import Any

import jax
import optax

from mtp_jax.config import Optim
from mtp_jax.models.params import by_path, matches, nested


def learning_rate(config: Optim) -> optax.Schedule:
    """Rate by update: linear warm-up to the peak, cosine decay to zero at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
    )


def make_optimizer(config: Optim) -> optax.GradientTransformation:
    """The gradient transformation of a run; it accumulates ``config.accumulate`` batches."""
    rate, decay = learning_rate(config), config.weight_decay
    if config.algorithm == "adamw":
        update = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=decay, mask=decayed)
    else:
        update = optax.contrib.muon(
            rate,
            weight_decay=decay,
            weight_decay_mask=decayed,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    steps = [optax.clip_by_global_norm(config.clip_norm), update]
    chain = optax.chain(*steps, _scaled_by_path(config)) if config.rates else optax.chain(*steps)
    if config.accumulate == 1:
        return chain
    accumulated = optax.MultiSteps(chain, config.accumulate)
    return optax.GradientTransformation(accumulated.init, accumulated.update)


def _scaled_by_path(config: Optim) -> optax.GradientTransformation:
    """Multiplies each update by the factor that its path has in ``config.rates``."""

    def factor(path: str) -> float:
        found = [f for pattern, f in config.rate_factors if matches((pattern,))(path)]
        return found[-1] if found else 1.0

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return nested({path: x * factor(path) for path, x in by_path(updates).items()})

    return optax.stateless(scaled)


def _matrices(params: Any) -> Any:
    """Which axes of each parameter make a matrix for Muon; None leaves it to AdamW."""

    def axes(path: Any, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel" or path[0].key == "ctc":
            return None
        return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: the kernels of matrix products, by name."""

    def is_kernel(path: Any, _: jax.Array) -> bool:
        return path[-1].key in ("kernel", "lm_head")

    return jax.tree_util.tree_map_with_path(is_kernel, params)
