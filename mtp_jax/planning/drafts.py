"""When drafts pay: wide calls against narrow ones, and the meshes that either may run on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mtp_jax.config import Mesh


def acceptance_needed(ratio: float, width: int) -> float | None:
    """Share of drafts that must be accepted for verification to be as fast as greedy decoding.

    A call gives one token, and each of ``width - 1`` drafts if it and those before it are accepted:
    1 + p + ... + p ** (width - 1) tokens, where a share p is, whatever its place.

    Args:
        ratio: time of a call `width` tokens wide to that of one 1 wide.
        width: S.

    Returns:
        p; 0 where wide calls take no longer, None where even the acceptance of all does not pay.
    """
    if ratio > width:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        enough = sum(middle**i for i in range(width)) >= ratio
        low, high = (low, middle) if enough else (middle, high)
    return 0.0 if ratio <= 1 else high


def decoding_meshes(chips: int, rows: int) -> Iterator[Mesh]:
    """Meshes for `rows` utterances: over as many chips as they divide by, then over fewer.

    The other chips split the matrices. Every chip takes part, and none waits for parameters.
    """
    most = math.gcd(chips, rows)
    for data in range(most, 0, -1):
        if most % data == 0:
            yield Mesh(data=data, fsdp=1, tensor=chips // data)
