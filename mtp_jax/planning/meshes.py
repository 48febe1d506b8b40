"""Meshes to choose from."""

from __future__ import annotations

from collections.abc import Iterator

from mtp_jax.config import Mesh


def factorisations(chips: int) -> Iterator[Mesh]:
    """Every mesh of `chips` devices: each way to write it as data x fsdp x tensor."""
    for tensor in _divisors(chips):
        for fsdp in _divisors(chips // tensor):
            yield Mesh(data=chips // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
