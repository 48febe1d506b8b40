"""The optimizer: AdamW (Loshchilov and Hutter, 2019), warm-up, cosine decay, clipping."""

from __future__ import annotations

from typing import Any

import jax
import optax

from mtp_jax.config import Optim


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
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
    if config.accumulate == 1:
        return chain
    accumulated = optax.MultiSteps(chain, config.accumulate)
    return optax.GradientTransformation(accumulated.init, accumulated.update)


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: the kernels of matrix products, by name."""

    def is_kernel(path: Any, _: jax.Array) -> bool:
        return path[-1].key in ("kernel", "lm_head")

    return jax.tree_util.tree_map_with_path(is_kernel, params)
