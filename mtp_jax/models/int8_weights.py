"""Matrices in int8 while a model decodes, a scale for each of their output features.

A decoder call for few rows takes as long as its matrices take to be read: in int8, half as long as
in bfloat16. `qwix` rounds them, and a `qwix.QArray` then stands in the tree of parameters where the
matrix stood. Each weight is off by at most a 254th of the largest of its feature; activations,
biases, norms and caches stay as they are, and so does the encoder, which is no faster in int8.

`mtp_jax.pretrained.int8` is about files: what it packs has its own type again once it is read.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mtp_jax.config import ConfigError
from mtp_jax.models.layers import TRANSPOSED
from mtp_jax.models.params import Params, by_path, is_int8, nested

KINDS = ("", "int8")  # of weights; "" leaves them as they are
# What a matrix is read along, by the end of its path: the axis that one scale is for.
_READ_ALONG = {"kernel": -2, TRANSPOSED: -1, "embedding": -1, "lm_head": -1, "unembedding": -1}
_PARTS = ("decoder/", "heads/")
_OF_ALL_HEADS = "heads/kernel"  # no layer's: heads 2..M read it in one product of three axes


def check_weights(weights: str) -> None:
    """Refuses a kind of weights.

    Raises:
        ConfigError: there is no such kind, or the library is missing.
    """
    if weights not in KINDS:
        raise ConfigError(f"weights={weights!r} must be 'int8', or '' for those of the model")
    if weights and importlib.util.find_spec("qwix") is None:
        raise ConfigError(
            f"weights={weights} needs a package that is not installed: run pip install qwix, or"
            " '.[int8]' in the project's folder"
        )


def leaf_in_int8(path: str, x: Any) -> Any:
    """The parameter `x`, as a `qwix.QArray` if it is a matrix that decoder calls multiply by."""
    axis = _READ_ALONG.get(path.rpartition("/")[2])
    if axis is None or not path.startswith(_PARTS) or path == _OF_ALL_HEADS or is_int8(x):
        return x
    return _rounded(x, x.ndim + axis)


def in_int8(params: Params) -> Params:
    """`params` with the matrices of decoder and heads in int8, one after the other.

    Args:
        params: of a `Recogniser`, without low-rank updates of its decoder, laid out for decoding or
            not.
    """
    return nested({path: leaf_in_int8(path, x) for path, x in by_path(params).items()})


@functools.partial(jax.jit, static_argnums=1)
def _rounded(x: jax.Array, axis: int) -> Any:
    import qwix

    kept = [i for i in range(x.ndim) if i != axis]
    return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=kept)


def sharding_in_int8(shape: Any, sharding: NamedSharding) -> Any:
    """Where a parameter goes that was to go to `sharding`, and its scales.

    Args:
        shape: of it, in int8 or not.
    """
    if not is_int8(shape):
        return sharding
    axes = (*sharding.spec, *[None] * (shape.ndim - len(sharding.spec)))
    own = zip(axes, shape.scale.shape, strict=True)
    split = PartitionSpec(*(None if size == 1 else axis for axis, size in own))
    return shape.replace(qvalue=sharding, scale=NamedSharding(sharding.mesh, split))
