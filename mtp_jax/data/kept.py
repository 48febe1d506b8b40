"""What was found out of a source once, kept as JSON below ``config.data.cache_dir``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtp_jax.data.source import DataError
from mtp_jax.paths import write_whole


def read_kept(path: Path) -> Any:
    """The value, or None where there is none, or a damaged one: it is found out again."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def keep(path: Path, value: Any) -> None:
    """Keeps `value`, in a folder that is made if need be.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_whole(path, json.dumps(value).encode())
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> DataError:
    """What is raised where nothing can be kept as `path`."""
    return DataError(
        f"the index of a source cannot be kept as {path} ({error.strerror}): "
        "set config.data.cache_dir to a folder that can be written"
    )
