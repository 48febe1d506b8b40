"""Manifests as NVIDIA NeMo writes them: a JSON object a line.

``audio_filepath`` (relative to the manifest, or absolute) and ``text`` are needed; ``speaker``,
``lang`` and ``id`` may be given. With ``offset`` a line is the part of its file that starts
there and lasts ``duration`` seconds. Without, it is the whole file, and ``duration`` is not
believed: the audio tells its own length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtp_jax.data.files import Recording
from mtp_jax.data.source import DataError, Problem


def read_manifest(path: Path) -> tuple[list[Recording], list[Problem]]:
    """Recordings of the manifest, and the lines that hold none.

    Raises:
        DataError: the file cannot be read.
    """
    items = list(iterate_manifest(path))
    return (
        [item for item in items if isinstance(item, Recording)],
        [item for item in items if isinstance(item, Problem)],
    )


def iterate_manifest(path: Path) -> Iterator[Recording | Problem]:
    """The lines of the manifest, one at a time; raises as `read_manifest`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _line(line, number, path.parent)
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read: {error.strerror}") from None


def _line(line: bytes, number: int, folder: Path) -> Recording | Problem:
    try:
        return _recording(json.loads(line.decode()), folder)
    except UnicodeDecodeError:
        return Problem(f"line {number}", "not UTF-8")
    except (json.JSONDecodeError, RecursionError):
        return Problem(f"line {number}", "not JSON")
    except DataError as error:
        return Problem(f"line {number}", "wrong field", str(error))


def _recording(entry: Any, folder: Path) -> Recording:
    if not isinstance(entry, dict):
        raise DataError("the line is not a JSON object")
    for field in ("audio_filepath", "text"):
        if not isinstance(entry.get(field), str):
            raise DataError(f"{field} is missing or not a string")
    file = entry["audio_filepath"]
    offset = _number(entry, "offset")
    name = file if offset is None else f"{file}@{offset:g}"
    return Recording(
        id=str(entry.get("id", name)),
        path=folder / file,
        text=entry["text"],
        speaker=str(entry.get("speaker", "")),
        lang=str(entry.get("lang", "")),
        offset=offset or 0.0,
        duration=None if offset is None else _number(entry, "duration"),
    )


def _number(entry: dict[str, Any], field: str) -> float | None:
    value = entry.get(field)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise DataError(f"{field} is {value!r}, not a number of seconds")
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{field} is {value!r}, not a number of seconds from 0 up")
    return float(value)
