"""The file ``model.bin`` of a CTranslate2 folder.

Little-endian; a string is its length (uint16, the closing NUL counted) and its bytes::

    uint32 binary version (6) · string name of the spec · uint32 revision of the spec
    uint32 count, then as many variables:
        string name · uint8 rank · uint32[rank] shape · uint8 dtype · uint32 bytes · the numbers
    uint32 count, then as many aliases: string name · string name of the variable

Source: ``ModelSpec._serialize`` in CTranslate2's python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from mtp_jax.pretrained.errors import PretrainedError

VERSION = 6
_MOST_AXES = 8  # of a tensor; a convolution's has three
DTYPES = tuple(
    np.dtype(x) for x in ("<f4", "<i1", "<i2", "<i4", "<f2", np.dtype(ml_dtypes.bfloat16))
)


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Every variable of the file, aliases included, by name: views into the mapped file.

    Raises:
        PretrainedError: it is not of this form, or its lengths do not add up to its size.
    """

    def corrupt(what: str) -> PretrainedError:
        return PretrainedError(
            f"{path} is no complete CTranslate2 model ({what}): download it again"
        )

    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise corrupt(str(error)) from error
    at = 0

    def take(count: int) -> np.ndarray:
        nonlocal at
        if at + count > len(data):
            raise corrupt(f"it ends at byte {len(data)} of {at + count} or more")
        at += count
        return data[at - count : at]

    def number(dtype: str) -> int:
        return int(take(np.dtype(dtype).itemsize).view(dtype)[0])

    def string() -> str:
        try:
            return bytes(take(number("<u2"))).rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise corrupt(f"no name at byte {at}") from None

    if (version := number("<u4")) != VERSION:
        raise PretrainedError(
            f"{path} is no CTranslate2 model of binary version {VERSION} (it says {version}):"
            " convert it again with CTranslate2 3.0 or newer"
        )
    string(), number("<u4")
    variables: dict[str, np.ndarray] = {}
    for _ in range(number("<u4")):
        name = string()
        shape = tuple(number("<u4") for _ in range(number("<u1")))
        if (kind := number("<u1")) >= len(DTYPES):
            raise corrupt(f"{name} is of dtype {kind}")
        if (count := number("<u4")) != math.prod(shape) * DTYPES[kind].itemsize:
            raise corrupt(f"{name} of shape {str(shape)[:60]} has {count} bytes")
        if len(shape) > _MOST_AXES or 0 in shape:
            raise corrupt(f"{name} is of shape {str(shape)[:60]}")
        variables[name] = take(count).view(DTYPES[kind]).reshape(shape)
    for _ in range(number("<u4")):
        name, target = string(), string()
        if target not in variables:
            raise corrupt(f"{name} stands for {target}, which is missing")
        variables[name] = variables[target]
    if at != len(data):
        raise corrupt(f"{len(data) - at} bytes follow its end")
    return variables
