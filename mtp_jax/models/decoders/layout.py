"""Parameters of the decoder with one array per layer: no call copies a layer out of a stack.

Training stacks the layers, and a program that loops over a stack copies every layer out of it at
each call, which takes about as long as the products. For decoding, each layer has arrays of its
own, in which the kernels that multiply the same input stand side by side and transposed, and
low-rank updates are added to their kernels. Checkpoints and exports keep the stack.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.config import Lora
from mtp_jax.models.layers import TRANSPOSED
from mtp_jax.models.params import Params, by_path, merge_lora, nested, products_type

JOINED = {
    "attention/query_key_value/kernel": (
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
    ),
    "gate_up/kernel": ("gate/kernel", "up/kernel"),
    "query_key_value/kernel": ("query/kernel", "key/kernel", "value/kernel"),
    "query_key_value/bias": ("query/bias", "key/bias", "value/bias"),
}


def layer_name(index: int) -> str:
    """Of the layer at `index` in a tree that `for_decoding` returns."""
    return f"layer_{index}"


def for_decoding(params: Mapping[str, Any], lora: Lora, dtype: str = "float32") -> Params:
    """A recogniser's parameters with the layers of decoder and heads laid out for decoding.

    Args:
        params: of a `Recogniser`, the layers stacked; matrices may be in int8.
        lora: of the decoder.
        dtype: of the matrices of decoder and heads that are not in int8.

    Returns:
        The same tree, but for ``decoder/layers`` and ``heads/layers``, in place of which
        ``decoder/layer_0`` and so on stand, and for the rows of the LM head that the heads read,
        ``heads/unembedding``, where they draft but some tokens. All other leaves are the same
        arrays.
    """
    laid_out = dict(params)
    for name, updates in (("decoder", lora), ("heads", Lora())):
        module = dict(params.get(name, {}))
        if "layers" in module:
            layers = _split(module.pop("layers"), updates)
            module |= {layer_name(i): layer for i, layer in enumerate(layers)}
        for alone in ("start", "block"):  # of serial heads
            if alone in module:
                (module[alone],) = _split(jax.tree.map(lambda x: x[None], module[alone]), Lora())
        if module:
            laid_out[name] = module
    if "tokens" in (heads := laid_out.get("heads", {})):
        decoder = laid_out["decoder"]
        lm_head = decoder.get("lm_head", decoder["embedding"])
        rows = jax.tree.map(lambda x: jnp.take(x, heads["tokens"], axis=0), lm_head)
        laid_out["heads"] = heads | {"unembedding": rows}
    own: Params = {name: laid_out[name] for name in ("decoder", "heads") if name in laid_out}
    return laid_out | products_type(own, dtype)


@functools.partial(jax.jit, static_argnums=1)
def _split(stacked: Params, lora: Lora) -> list[Params]:
    leaves = by_path(merge_lora(stacked, lora) if lora.rank else stacked)
    count = len(jax.tree.leaves(leaves)[0])
    # A matrix in int8 is two arrays, of its numbers and of its scales, that are laid out alike.
    for name, parts in JOINED.items():
        if parts[0] in leaves:
            none = jax.tree.map(jnp.zeros_like, leaves[parts[0]])  # a Whisper's keys have no bias
            leaves[name] = jax.tree.map(_side_by_side, *(leaves.pop(part, none) for part in parts))
    for path in [path for path in leaves if path.endswith("/kernel")]:
        turned = jax.tree.map(lambda x: jnp.swapaxes(x, -1, -2), leaves.pop(path))
        leaves[path.removesuffix("kernel") + TRANSPOSED] = turned
    return [jax.tree.map(lambda x, i=i: x[i], nested(leaves)) for i in range(count)]


def _side_by_side(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)
