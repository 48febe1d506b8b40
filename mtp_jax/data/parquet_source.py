"""Data sets as the `datasets` library keeps them: Parquet or Arrow files with audio in a column.

The column holds structs with ``bytes``, the contents of an audio file, or such bytes alone. A
``path`` beside them is where the file once was: it is never opened. A text column is taken by its
name. Needs pyarrow, the extra ``parquet``.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tqdm

from mtp_jax import interrupts
from mtp_jax.audio.folders import shown
from mtp_jax.audio.reading import AudioError, audio_seconds, read_audio, refuse
from mtp_jax.data.files import Listed, Recording
from mtp_jax.data.kept import keep, read_kept
from mtp_jax.data.source import DataError, Problem
from mtp_jax.data.table_files import SUFFIXES, TableError, TableFile, open_table, read_cell

if TYPE_CHECKING:
    import pyarrow as pa

# Names under which data sets keep things, the likeliest first.
AUDIO = ("audio", "speech", "wav", "flac")
TEXT = ("text", "sentence", "transcription", "transcript")
SPEAKER = ("speaker_id", "speaker", "client_id")
LANG = ("lang", "language", "locale")

_VERSION = 1  # of the index
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # of a split that is kept in several files
_SPLITS = ("train", "test", "validation", "valid", "dev")


@dataclasses.dataclass(frozen=True)
class Row(Recording):
    """A recording within a table.

    Attributes:
        path: of the table's file.
        row: in it.
        column: of the bytes; a dot leads into one of structs.
    """

    row: int = 0
    column: str = ""

    def contents(self) -> bytes:
        """The audio file.

        Raises:
            AudioError: it cannot be read.
        """
        try:
            found = read_cell(self.path, self.row, self.column)
        except TableError as error:
            raise AudioError(f"row {self.row} of {error}") from None
        if not isinstance(found, bytes) or not found:
            raise AudioError(f"{self._name} holds no bytes: {_NO_BYTES}")
        return found

    def length(self) -> float:
        """As of `Recording`."""
        return audio_seconds(self.contents(), name=self._name)

    def read(self, sample_rate: int) -> np.ndarray:
        """As of `Recording`."""
        return read_audio(self.contents(), sample_rate, name=self._name, warn=refuse)

    def digest(self, sample_rate: int) -> str:
        """As of `Recording`."""
        audio = hashlib.sha256(self.contents())
        audio.update(repr(sample_rate).encode())
        return audio.hexdigest()

    @property
    def _name(self) -> str:
        return f"row {self.row} of {self.path}"


_NO_BYTES = "save the data set with its audio in it, as a path is never opened"


def list_tables(path: Path) -> list[Path]:
    """The files of a data set, sorted.

    Args:
        path: a file, a folder, or a folder and a pattern of names.

    Raises:
        DataError: there are none, they are of several splits, or pyarrow is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            f"parquet:{path} needs a package that is not installed: run pip install pyarrow, or"
            " '.[parquet]' in the project's folder"
        )
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(path.rglob("*"))
    else:
        found = list(path.parent.glob(path.name)) if path.name else []
    files = sorted(
        file
        for file in found
        # Beside them `datasets` keeps what its transformations made.
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith((".", "cache-"))
    )
    if not files:
        raise DataError(
            f"parquet:{path} is no file, and no folder with .parquet or .arrow files: name one"
        )
    splits = {split for split in map(_split, files) if split}
    if len(splits) > 1:
        # Nobody is to train on a test set because it lies beside the training data.
        names = sorted(split.relative_to(_root(path)).as_posix() for split in splits)
        example = _root(path) / names[-1]
        raise DataError(
            f"parquet:{path} holds several splits ({', '.join(names)}): name one, as"
            f" parquet:{example}{'' if example.is_dir() else '*'}, or several joined by +"
        )
    return files


def _split(file: Path) -> Path | None:
    """The split that a file is of by its name, or by that of its folder."""
    if shard := _SHARD.fullmatch(file.stem):
        return file.parent / shard[1]
    if file.stem in _SPLITS:
        return file.parent / file.stem
    return file.parent if file.parent.name in _SPLITS else None


def _root(path: Path) -> Path:
    """The folder that names of files are told from."""
    return path if path.is_dir() else path.parent


def read_tables(path: Path, needs_text: bool, cache_dir: Path, workers: int) -> Listed:
    """The rows of a data set. A file that cannot be read stops no other.

    Args:
        path: as of `list_tables`.
        needs_text: whether there must be a column of texts.
        cache_dir: where lengths and texts are kept, in ``index/``.
        workers: threads that read audio for its length.

    Raises:
        DataError: no file can be used, or the index cannot be kept.
        Interrupted: between two groups of rows.
    """
    files = list_tables(path)
    listed = Listed([], [], [])
    refused: list[str] = []
    for file in files:
        name = shown(file.relative_to(_root(path)))
        try:
            table = open_table(file)
            columns = _Columns.of(table, needs_text)
            entries = _entries(table, columns, cache_dir, workers)
        except (TableError, _WrongColumnsError) as error:
            reason = "unreadable file" if isinstance(error, TableError) else "wrong columns"
            listed.problems.append(Problem(name, reason, str(error)))
            refused.append(str(error))
            continue
        for row, entry in enumerate(entries):
            if "seconds" in entry:
                seconds = entry.pop("seconds")
                listed.recordings.append(
                    Row(f"{name}:{row}", file, row=row, column=columns.audio, **entry)
                )
                listed.lengths.append(seconds)
            else:
                listed.problems.append(Problem(f"{name}:{row}", **entry))
    if len(refused) == len(files):
        raise DataError(refused[0])
    return listed


class _WrongColumnsError(ValueError):
    """A table that has not the columns that are needed."""


class _Columns(NamedTuple):
    """Which columns hold what; empty where none does."""

    audio: str
    text: str
    speaker: str
    lang: str

    @classmethod
    def of(cls, table: TableFile, needs_text: bool) -> _Columns:
        """Those of a table.

        Raises:
            _WrongColumnsError: it has none for audio, or for a text that is needed.
        """
        import pyarrow as pa

        def is_string(kind: pa.DataType) -> bool:
            return pa.types.is_string(kind) or pa.types.is_large_string(kind)

        def is_name(kind: pa.DataType) -> bool:
            return is_string(kind) or pa.types.is_integer(kind)

        def named(names: tuple[str, ...], fits: Callable[[pa.DataType], bool]) -> str:
            kinds = {field.name: field.type for field in table.schema}
            return next((name for name in names if name in kinds and fits(kinds[name])), "")

        audible = {field.name: _audible(field) for field in table.schema}
        audible = {name: column for name, column in audible.items() if column}
        likely = [name for name in AUDIO if name in audible] or list(audible)
        if not likely or (len(likely) > 1 and likely[0] not in AUDIO):
            raise _WrongColumnsError(
                f"{table.path} has {', '.join(likely) or 'no column'} for audio: it needs one"
                " called audio, of structs with bytes, as datasets.Audio is saved"
            )
        text = named(TEXT, is_string)
        if needs_text and not text:
            raise _WrongColumnsError(
                f"{table.path} has no column of texts ({', '.join(TEXT)}), which only"
                " config.data.text=greedy does without: rename the column that holds them"
            )
        return cls(audible[likely[0]], text, named(SPEAKER, is_name), named(LANG, is_string))


def _audible(field: pa.Field) -> str:
    """The column of bytes in `field`; empty if it can hold no audio."""
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    kind = field.type
    if is_bytes(kind):
        return str(field.name)
    inside = [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    has_bytes = any(each.name == "bytes" and is_bytes(each.type) for each in inside)
    return f"{field.name}.bytes" if has_bytes else ""


def _entries(
    table: TableFile, columns: _Columns, cache_dir: Path, workers: int
) -> list[dict[str, Any]]:
    """Of each row fields of a `Row` and its ``seconds``, or fields of a `Problem`."""
    status = table.path.stat()
    key = [_VERSION, os.fspath(table.path.absolute()), status.st_size, status.st_mtime_ns, columns]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache_dir / "index" / f"parquet-{digest}.json"
    rows = int(table.ends[-1]) if len(table.ends) else 0
    kept = read_kept(path)
    if _is_whole(kept, rows):
        return list(kept)
    entries: list[dict[str, Any]] = []
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=rows, desc=f"indexing {table.path.name}", delay=2) as bar,
    ):
        for group in interrupts.checked(range(len(table.ends))):
            audio = table.group(group, columns.audio)
            names = [f"row {len(entries) + i} of {table.path}" for i in range(len(audio))]
            # One value at a time: all of them as bytes would be a second copy.
            lengths = pool.map(_length, (audio[i] for i in range(len(audio))), names)
            told = {
                field: _strings(table.group(group, column))
                for field, column in zip(("text", "speaker", "lang"), columns[1:], strict=True)
                if column
            }
            for i, length in enumerate(lengths):
                entry = {field: values[i] for field, values in told.items()}
                entries.append(_entry({"text": "", **entry}, length))
                bar.update()
    keep(path, entries)
    return entries


def _entry(told: dict[str, str | None], length: float | dict[str, str]) -> dict[str, Any]:
    if None in told.values():
        wrong = next(field for field, value in told.items() if value is None)
        return {"reason": "not UTF-8", "detail": f"its {wrong} is not UTF-8"}
    if isinstance(length, float):
        return {**told, "seconds": length}
    return {**length, "text": told["text"]}


def _length(value: Any, name: str) -> float | dict[str, str]:
    """Seconds of a value's audio, or fields of a `Problem`."""
    contents = value.as_py()
    if not contents:
        return {"reason": "no audio", "detail": f"{name} holds no bytes: {_NO_BYTES}"}
    try:
        return float(audio_seconds(contents, name=name))
    except AudioError as error:
        return {"reason": "unreadable audio", "detail": str(error)}


def _strings(column: Any) -> list[str | None]:
    """Values as text; None for one that is not UTF-8."""
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())

    def string(value: bytes | None) -> str | None:
        try:
            return (value or b"").decode()
        except UnicodeDecodeError:
            return None

    return [string(value) for value in raw.to_pylist()]


def _is_whole(entries: Any, rows: int) -> bool:
    """Whether what was kept is an index of so many rows."""
    try:
        for entry in entries:
            if "seconds" in entry:
                fields = {name: value for name, value in entry.items() if name != "seconds"}
                Row("", Path(), **fields)
                float(entry["seconds"])
            else:
                Problem("", **entry)
        return len(entries) == rows
    except (TypeError, ValueError):
        return False
