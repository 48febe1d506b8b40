"""Matrices in int8, with a scale for each of their columns, for files that have to be small.

A matrix ``[..., in, out]`` is its int8 numbers times its scales ``[..., 1, out]``, which are kept
beside it: each weight is off by at most a 254th of the largest of its column.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SCALE = ".scale"  # behind the path of the matrix


def to_int8(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels as int8 and their float32 scales; other numbers, which are few, as float16.

    Integers stay.
    """
    found: dict[str, np.ndarray] = {}
    for path, x in leaves.items():
        if not path.endswith("kernel"):
            found[path] = x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float16)
            continue
        x = x.astype(np.float32)
        scale = np.max(np.abs(x), axis=-2, keepdims=True) / np.float32(127)
        found[path] = np.rint(x / np.where(scale == 0, np.float32(1), scale)).astype(np.int8)
        found[path + SCALE] = scale
    return found


def from_int8(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_int8`; what has no scale, or is none of a matrix, stays as it is."""
    whole = dict(found)
    for path, x in found.items():
        scale = found.get(path + SCALE)
        if scale is not None and scale.shape == (*x.shape[:-2], 1, *x.shape[-1:]):
            whole[path] = x.astype(np.float32) * whole.pop(path + SCALE)
    return whole
