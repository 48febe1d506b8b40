"""Whether sources can be opened, found out before minutes go into loading a model or training."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from mtp_jax.config import Data
from mtp_jax.data.audio_folder import list_audio
from mtp_jax.data.files import Recording
from mtp_jax.data.manifest import iterate_manifest
from mtp_jax.data.parquet_source import list_tables
from mtp_jax.data.records import is_packed
from mtp_jax.data.source import DataError, Problem
from mtp_jax.data.sources import (
    check_dataset,
    is_dataset,
    no_such_source,
    parts_of,
    place_of,
    refuse_without_text,
)

_LINES = 50  # of a manifest


def check_sources(specs: Iterable[str], data: Data, needs_text: bool | None = None) -> None:
    """Opens sources as far as that is cheap: no audio is read, and no data set made.

    A manifest's first lines are read, folders are looked into, and names of splits compared.
    What is further down is met when the source is opened.

    Args:
        specs: as `open_source` takes them.
        data, needs_text: as `open_source` takes them.

    Raises:
        DataError: one of them is no source.
    """
    needs_text = data.needs_text if needs_text is None else needs_text
    for spec in dict.fromkeys(specs):
        for part in parts_of(spec):
            _check(part, needs_text)


def _check(spec: str, needs_text: bool) -> None:
    kind, path = place_of(spec)
    if is_dataset(spec):
        check_dataset(spec)
    elif kind == "audio":
        if needs_text:
            refuse_without_text(spec)
        list_audio(path)
    elif kind == "parquet":
        list_tables(path)
    elif not spec or not path.exists():
        raise no_such_source(spec)
    elif not path.is_dir():
        check_manifest(path, needs_text)
    elif not is_packed(path) and next(path.rglob("*.trans.txt"), None) is None:
        if not os.access(path, os.R_OK | os.X_OK):
            raise DataError(f"{path} cannot be read: see to its permissions")
        raise DataError(
            f"{path} is neither a LibriSpeech directory, with SPEAKER/CHAPTER/*.trans.txt, nor one"
            " that mtp_jax.pack wrote"
        )


def check_manifest(path: Path, needs_text: bool = True) -> None:
    """Refuses a manifest whose first lines hold no recording.

    Args:
        path: of the file.
        needs_text: whether a line without a text holds none.

    Raises:
        DataError: it cannot be read, or they do not.
    """
    first = list(itertools.islice(iterate_manifest(path, needs_text), _LINES))
    if any(isinstance(item, Recording) for item in first):
        return
    if not first:
        raise DataError(f"manifest {path} is empty: a line for each recording is needed")
    problem = next(item for item in first if isinstance(item, Problem))
    said = f": {problem.detail}" if problem.detail else ""
    raise DataError(
        f"{path} is no manifest: of its first {len(first)} lines none is one of a manifest"
        f" ({problem.id} is {problem.reason}{said})"
    )
