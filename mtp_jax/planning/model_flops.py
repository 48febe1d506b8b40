"""Operations that a training step needs, however it is compiled: what MFU counts.

Matrix products are counted in the traced program, loops by their length. Recomputation does not
count (Chowdhery et al., "PaLM", 2022, appendix B): the program is traced without it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.interpreters import partial_eval

from mtp_jax.models.params import merge
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.planning.programs import Load, batch
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import abstract_state, counted_heads, loss_fn


def train_step_flops(model: Recogniser, mesh: jax.sharding.Mesh, load: Load) -> float:
    """Operations of the matrix products of one step: forwards, and backwards to what is trained."""
    c = model.config
    kept = dataclasses.replace(
        c,
        encoder=dataclasses.replace(c.encoder, remat=False),
        decoder=dataclasses.replace(c.decoder, remat=False),
    )
    model = dataclasses.replace(model, config=kept)
    state, _ = abstract_state(model, make_optimizer(c.optim), mesh)
    others = merge(state.frozen, state.imported)

    def loss(trained: Any, others: Any, rows: Any) -> jax.Array:
        return loss_fn(model, merge(trained, others), rows, jax.random.key(0))[0]

    rows = jax.tree.map(lambda x: x.update(sharding=None), batch(model, mesh, load, True))
    traced = jax.make_jaxpr(jax.grad(loss))(state.params, others, rows)
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
    # Logits are made anew for their gradient.
    decoder = c.whisper_decoder if c.whisper_decoder.present else c.decoder

    def columns(tokens: int) -> int:
        """With those that fill the last part of them."""
        parts = max(1, round(tokens / c.loss.columns))
        return -(-tokens // parts) * parts

    size = model.vocabulary.size
    first, *later = counted_heads(model, state.model_params)
    logits = first * columns(size) + sum(later) * columns(c.heads.vocabulary or size)
    return count(needed) - 2.0 * load.rows * load.tokens * logits * decoder.width


def count(jaxpr: Any) -> float:
    """Operations of the matrix products of a jaxpr; a loop of unknown length counts once."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        out = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * out * math.prod(sizes[axis] for axis in contracted)
    if name == "cond":
        return max(count(branch.jaxpr) for branch in params["branches"])
    inner = sum(count(j) for j in _jaxprs(params))
    return inner * params["length"] if name == "scan" else inner


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            found.append(value)
    return found
