"""Speech packed into few large files, with one index of all lengths and texts.

A folder of ``00000.array_record``, ``00001.array_record``, ... and ``index.safetensors``. A record
is one utterance: 16-bit mono FLAC. The index holds what a plan of batches needs, as columns, so
that a run begins without listing a folder or opening a file of audio; `packing` writes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtp_jax.audio.reading import AudioError, read_audio, refuse
from mtp_jax.data.source import DataError, Problem, Source, Utterance
from mtp_jax.data.views import View

INDEX = "index.safetensors"
_VERSION = "2"
_OPEN_FILES = 256  # of one process, well below what systems allow


def shard_name(shard: int) -> str:
    """Of a file of records."""
    return f"{shard:05d}.array_record"


class Column(Sequence[str]):
    """Many strings in two arrays.

    Args:
        blob: uint8[...], their UTF-8, one after the other.
        ends: int64[N], where each ends.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self._blob, self._ends = blob, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        start = self._ends[i - 1] if i else 0
        return self._blob[start : self._ends[i]].tobytes().decode()

    @staticmethod
    def arrays(texts: Iterable[str], name: str) -> dict[str, np.ndarray]:
        """Both arrays, by the names that `of` knows them by."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(x) for x in encoded], dtype=np.int64)
        return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], name: str) -> Column:
        """The column that `arrays` made."""
        return cls(arrays[name], arrays[f"{name}_ends"])


def _utterances(arrays: dict[str, np.ndarray]) -> View:
    """Those of an index."""
    ids, texts, names = (Column.of(arrays, name) for name in ("id", "text", "names"))
    seconds, speaker, lang = arrays["seconds"], arrays["speaker"], arrays["lang"]

    def utterance(i: int) -> Utterance:
        who, what = names[int(speaker[i])], names[int(lang[i])]
        return Utterance(ids[i], texts[i], float(seconds[i]), who, what)

    return View(len(seconds), utterance)


def write_index(
    path: Path, shards: Iterable[Iterable[Utterance | Problem]], sample_rate: int
) -> tuple[int, int, int]:
    """Writes the index of a folder.

    Args:
        path: of the file, which must not be looked for before it is whole.
        shards: what each file of records holds, and what was left out there, in order.
        sample_rate: Hz of the audio.

    Returns:
        How many utterances, items left out, and files of records there are.
    """
    from safetensors.numpy import save_file

    sizes: list[int] = []
    names: dict[str, int] = {}
    ids: list[str] = []
    texts: list[str] = []
    numbers: list[tuple[float, int, int]] = []
    left_out = 0
    for shard in shards:
        sizes.append(0)
        for item in shard:
            if isinstance(item, Problem):
                left_out += 1
                continue
            sizes[-1] += 1
            ids.append(item.id)
            texts.append(item.text)
            speaker, lang = (names.setdefault(x, len(names)) for x in (item.speaker, item.lang))
            numbers.append((item.seconds, speaker, lang))
    columns = np.array(numbers, "f8, i4, i4")
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array(sizes, np.int64),
        "sample_rate": np.array(sample_rate),
        "left_out": np.array(left_out),
        **{name: columns[f"f{i}"].copy() for i, name in enumerate(("seconds", "speaker", "lang"))},
        **Column.arrays(ids, "id"),
        **Column.arrays(texts, "text"),
        **Column.arrays(names, "names"),
    }
    # More than one note, and their order would be another each time.
    save_file(arrays, path, {"version": _VERSION})
    path.chmod(0o644)  # safetensors lets nobody else read it
    return len(ids), left_out, len(sizes)


def read_index(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an index.

    Raises:
        DataError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            version = (file.metadata() or {}).get("version")
            if version != _VERSION:
                raise ValueError(f"version {version}, not {_VERSION}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if len(arrays["seconds"]) != int(arrays["sizes"].sum()) or arrays["sample_rate"] <= 0:
            raise ValueError("its parts do not agree")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): pack the data again") from None
    return arrays


def is_packed(folder: Path) -> bool:
    """Whether `folder` is one of these."""
    return (folder / INDEX).is_file()


def record_source(folder: Path, sample_rate: int) -> Source:
    """A source over a packed folder.

    Args:
        folder: holds it.
        sample_rate: Hz of the waveforms.

    Raises:
        DataError: its index cannot be read.
    """
    arrays = read_index(folder / INDEX)
    utterances = _utterances(arrays)
    ends = np.cumsum(arrays["sizes"])

    @functools.lru_cache(maxsize=_OPEN_FILES)
    def reader(shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        # By default a reader fetches ahead; here records are read one by one, in any order.
        return ArrayRecordReader(str(folder / shard_name(shard)), "readahead_buffer_size:0")

    def waveform(i: int) -> np.ndarray:
        shard = int(np.searchsorted(ends, i, side="right"))
        place = i - (int(ends[shard - 1]) if shard else 0)
        name = f"record {place} of {folder / shard_name(shard)}"
        try:
            [record] = reader(shard).read([place])
        except (RuntimeError, IndexError, OSError, ValueError, TypeError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AudioError(f"{name} cannot be read: {said}") from None
        return read_audio(record, sample_rate, name=name, warn=refuse)

    left_out = int(arrays["left_out"])
    problems = [Problem(f"{left_out} items", "left out in packing")] if left_out else []
    return Source(folder.name, "", utterances, problems, waveform)


def to_line(item: Utterance | Problem) -> str:
    """One line of JSON, that `from_lines` reads."""
    return json.dumps([type(item).__name__, list(vars(item).values())])


def from_lines(lines: Iterable[str]) -> Iterator[Utterance | Problem]:
    """What `to_line` was given."""
    for line in lines:
        kind, values = json.loads(line)
        yield (Utterance if kind == "Utterance" else Problem)(*values)
