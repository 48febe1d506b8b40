"""Manifests as NVIDIA NeMo writes them: a JSON object a line.

``audio_filepath`` (relative to the manifest, or absolute) is needed, and ``text`` unless a model
writes the texts itself; ``speaker``, ``lang`` and ``id`` may be given. A line is the part of its
file that starts at ``offset``, 0 by default, and lasts ``duration`` seconds, or as long as the
audio does if that is less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtp_jax.data.files import Recording
from mtp_jax.data.source import DataError, Problem

_WITHOUT_TEXT = ": add it, as only config.data.text=greedy does without"
_FIELDS = ("audio_filepath", "text", "id", "speaker", "lang", "offset", "duration")


def read_manifest(path: Path, needs_text: bool = True) -> tuple[list[Recording], list[Problem]]:
    """Recordings of the manifest, and the lines that hold none.

    Args:
        path: of the file.
        needs_text: whether a line without a text holds none; else its text is empty.

    Raises:
        DataError: the file cannot be read.
    """
    items = list(iterate_manifest(path, needs_text))
    return (
        [item for item in items if isinstance(item, Recording)],
        [item for item in items if isinstance(item, Problem)],
    )


def iterate_manifest(path: Path, needs_text: bool = True) -> Iterator[Recording | Problem]:
    """The lines of the manifest, one at a time; arguments and errors as of `read_manifest`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _line(line, number, path.parent, needs_text)
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read: {error.strerror}") from None


def _line(line: bytes, number: int, folder: Path, needs_text: bool) -> Recording | Problem:
    try:
        return _recording(json.loads(line.decode()), folder, needs_text)
    except UnicodeDecodeError:
        return Problem(f"line {number}", "not UTF-8")
    except (json.JSONDecodeError, RecursionError):
        return Problem(f"line {number}", "not JSON")
    except DataError as error:
        return Problem(f"line {number}", "wrong field", str(error))


def _recording(entry: Any, folder: Path, needs_text: bool) -> Recording:
    if not isinstance(entry, dict):
        raise DataError("the line is not a JSON object")
    if not needs_text and entry.get("text") is None:
        entry["text"] = ""
    for field in ("audio_filepath", "text"):
        if not isinstance(entry.get(field), str):
            others = ", ".join(str(key) for key in entry if key not in _FIELDS)
            instead = f"; the line has {others} instead" if others and field not in entry else ""
            remedy = _WITHOUT_TEXT if field == "text" and needs_text and not instead else ""
            raise DataError(f"{field} is missing or not a string{instead}{remedy}")
    for field in _FIELDS[:5]:
        try:
            str(entry.get(field, "")).encode()
        except UnicodeEncodeError:
            raise DataError(f"{field} holds half of a character (a lone surrogate)") from None
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
        duration=_number(entry, "duration"),
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
