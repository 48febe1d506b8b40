"""Digests of what is saved, to be compared with what is read: storage does not tell all damage."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class DamageError(ValueError):
    """What was read is not what was saved; the message names the first array."""


def digests(tree: Any) -> dict[str, str]:
    """SHA-256 of the numbers of each array of `tree`, by its path in the tree.

    Empty with several processes: none of them has an array whole.
    """
    if jax.process_count() > 1:
        return {}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
        for path, x in leaves
    }


def check(tree: Any, saved: Mapping[str, str]) -> None:
    """Compares a tree that was read with the digests that were saved with it, if there are any.

    Raises:
        DamageError: an array differs.
    """
    for path, digest in digests(tree).items():
        if saved.get(path, digest) != digest:
            raise DamageError(f"{path} holds other numbers than were saved")


def file_digest(file: pathlib.Path) -> str:
    """SHA-256 (hexadecimal) of a file.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
