"""Files of tables, as the `datasets` library writes them: Parquet, and Arrow's stream format.

What is read is columns of numbers, strings and bytes. Nothing is unpickled, and no other file is
opened.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")


class TableError(ValueError):
    """A file of a table that cannot be read; the message says which and why."""


class TableFile(NamedTuple):
    """A file of rows, which stand in groups that are read as a whole.

    Attributes:
        path: of it.
        schema: names and types of its columns.
        ends: int64[G], the row behind the last of each group.
        batches: the groups, of a file that is mapped into memory.
        metadata: of a Parquet file.
    """

    path: Path
    schema: pa.Schema
    ends: np.ndarray
    batches: tuple[pa.RecordBatch, ...] = ()
    metadata: Any = None

    def place(self, row: int) -> tuple[int, int]:
        """The group that a row is in, and its place there."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def group(self, number: int, column: str) -> pa.Array | pa.ChunkedArray:
        """A column of a group; a dot leads into one of structs.

        Raises:
            TableError: it cannot be read.
        """
        with _told(self.path):
            import pyarrow.compute as pc

            name, _, field = column.partition(".")
            if self.metadata is None:
                array = self.batches[number].column(name)
                array.validate(full=True)  # as it is taken from the file just as it is
            else:
                array = self._row_group(number, column).column(0)
            return pc.struct_field(array, field) if field else array

    def _row_group(self, number: int, column: str) -> pa.Table:
        import pyarrow.parquet as pq

        # One each time, as threads cannot share it; the metadata are not read again.
        with pq.ParquetFile(self.path, metadata=self.metadata) as file:
            return file.read_row_group(number, [column], use_threads=False)


def open_table(path: Path) -> TableFile:
    """Opens a file; an open one stays open until it changes.

    Raises:
        TableError: it cannot be read.
    """
    with _told(path):
        return _open(*_version(path))


def read_cell(path: Path, row: int, column: str) -> Any:
    """One value; the groups that were read last are at hand.

    Raises:
        TableError: it cannot be read.
    """
    with _told(path):
        version = _version(path)
        file = _open(*version)
        group, place = file.place(row)
        return _group(*version, group, column)[place].as_py()


def _version(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2)  # a group of audio may have 100 MB
def _group(path: Path, size: int, modified: int, number: int, column: str) -> Any:
    return _open(path, size, modified).group(number, column)


@functools.lru_cache(maxsize=256)
def _open(path: Path, size: int, modified: int) -> TableFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        mapped = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_stream(mapped)
            batches = tuple(reader)
        except pa.ArrowInvalid:  # Arrow's file format
            reader = pa.ipc.open_file(mapped)
            batches = tuple(map(reader.get_batch, range(reader.num_record_batches)))
        ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
        return TableFile(path, reader.schema, ends, batches)
    with pq.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return TableFile(path, schema, np.cumsum(sizes, dtype=np.int64), metadata=metadata)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of Arrow's as a sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, KeyError, IndexError, MemoryError) as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        said = strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TableError(
            f"{path} cannot be read ({said.rstrip('.')}): replace it or leave it out"
        ) from None
