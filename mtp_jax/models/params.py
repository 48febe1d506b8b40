"""Trees of parameters, taken apart and put together by the paths of their leaves.

A path names a leaf from the top down, as in ``decoder/layers/attention/query/kernel``.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mtp_jax.config import Lora

Params = dict[str, Any]


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested dictionaries by their paths."""
    return dict(traverse_util.flatten_dict(dict(tree), sep="/"))


def nested(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `by_path`."""
    return dict(traverse_util.unflatten_dict(dict(leaves), sep="/"))


def split(tree: Mapping[str, Any], first: Callable[[str], bool]) -> tuple[Params, Params]:
    """The leaves whose paths satisfy `first`, and the others."""
    leaves = by_path(tree)
    return (
        nested({path: x for path, x in leaves.items() if first(path)}),
        nested({path: x for path, x in leaves.items() if not first(path)}),
    )


def merge(*trees: Mapping[str, Any]) -> Params:
    """One tree of all leaves; where two have the same path the later holds."""
    return nested({path: x for tree in trees for path, x in by_path(tree).items()})


def matches(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path is matched by shell-like `patterns`, in which ``*`` also spans slashes.

    The last pattern that matches decides, and one that begins with ``!`` says no:

    >>> frozen = matches(("decoder/*", "!*/lora_?"))
    >>> frozen("decoder/layers/gate/kernel"), frozen("decoder/layers/gate/lora_a")
    (True, False)
    """

    def matched(path: str) -> bool:
        found = False
        for pattern in patterns:
            if fnmatch.fnmatchcase(path, pattern.removeprefix("!")):
                found = not pattern.startswith("!")
        return found

    return matched


def is_int8(x: Any) -> bool:
    """Whether `x` is a matrix of int8 numbers and their scales (`mtp_jax.models.int8_weights`)."""
    return hasattr(x, "qvalue")  # of a qwix.QArray: that package is an extra


def has_int8(tree: Any) -> bool:
    """Whether some matrix in `tree` is in int8."""
    return any(map(is_int8, jax.tree.leaves(tree, is_leaf=is_int8)))


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree, is_leaf=is_int8))


def merge_lora(tree: Mapping[str, Any], lora: Lora) -> Params:
    """`tree` with every low-rank update added to its kernel, and then left out.

    Args:
        tree: of one part of the model, all of whose updates are described by `lora`.
        lora: rank and scale.
    """
    leaves = by_path(tree)

    def merged(path: str, x: jax.Array) -> jax.Array:
        at = functools.partial(str.__add__, path.removesuffix("kernel"))
        if not path.endswith("kernel") or at("lora_a") not in leaves:
            return x
        return x + leaves[at("lora_a")] @ leaves[at("lora_b")] * (lora.alpha / lora.rank)

    kept = {path: x for path, x in leaves.items() if not path.endswith(("lora_a", "lora_b"))}
    return nested({path: merged(path, x) for path, x in kept.items()})


def products_type(tree: Params, dtype: str) -> Params:
    """`tree` with every matrix in the type of the activations, in which its products are made.

    Nothing that is computed changes, and what is read of memory halves. Norms, and the CTC head,
    whose product is float32, stay as they are; and so do matrices in int8.
    """

    def cast(path: str, x: jax.Array) -> jax.Array:
        matrix = path.endswith(("kernel", "embedding", "lm_head", "lora_a", "lora_b"))
        stays = not matrix or path.startswith("ctc/") or is_int8(x)
        return x if stays else x.astype(dtype)

    return nested({path: cast(path, x) for path, x in by_path(tree).items()})
