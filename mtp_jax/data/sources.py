"""One way to open any source of utterances."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtp_jax.config import Data
from mtp_jax.data.audio_folder import read_folder
from mtp_jax.data.files import file_source
from mtp_jax.data.grammar import SPLITS
from mtp_jax.data.librispeech import read_tree
from mtp_jax.data.manifest import read_manifest
from mtp_jax.data.parquet_source import read_tables
from mtp_jax.data.records import is_packed, record_source
from mtp_jax.data.source import DataError, Problem, Report, Source, Utterance
from mtp_jax.data.text import plain
from mtp_jax.data.views import View

# Name (embedded, its size, or what the catalogue calls it) and split, such as train[:10%].
_DATASET = re.compile(r"(embedded(?:/([^:/]+))?|tfds:([^:]+)):(.+)")
# Kinds of folders that do not show what they are.
_PLACE = re.compile(r"(audio|parquet):(.+)", re.DOTALL)
MIN_SECONDS = 0.1  # less holds no word; ten feature frames


def open_source(
    spec: str,
    data: Data,
    sample_rate: int,
    max_seconds: float | None = None,
    needs_text: bool | None = None,
) -> Source:
    """Opens what `spec` names, less the utterances that cannot be used.

    Args:
        spec: as in `Data.train`: ``embedded:SPLIT`` (also ``embedded/noisy:SPLIT``, and
            ``embedded/tiny:SPLIT`` for tests),
            ``tfds:NAME[/CONFIG]:SPLIT``, a manifest, a LibriSpeech directory, a folder that
            `mtp_jax.pack` made, ``audio:FOLDER``, ``parquet:FOLDER_OR_FILE``, or several of these
            joined by ``+``.
        data: says where things are cached, and how many threads may read.
        sample_rate: Hz of the waveforms.
        max_seconds: that an utterance may be long; by default those of the longest bucket.
        needs_text: whether utterances without text are left out; by default unless
            ``data.text`` is "greedy", as a model then writes all texts itself.

    Raises:
        DataError: there is no such source, or nothing in it can be used.
    """
    needs_text = data.needs_text if needs_text is None else needs_text
    longest = data.bucket_seconds[-1] if max_seconds is None else max_seconds
    opened = [_open(part, data, sample_rate, longest, needs_text) for part in parts_of(spec)]
    whole = opened[0] if len(opened) == 1 else _concatenated(opened)
    if data.text == "plain":
        given = whole.utterances
        alike = View(len(given), lambda i: dataclasses.replace(given[i], text=plain(given[i].text)))
        whole = dataclasses.replace(whole, utterances=alike)
    usable = _usable(whole, longest, needs_text)
    if not usable.utterances:
        skipped = Report(spec, 0, usable.problems).skipped()
        raise DataError(f"source {spec!r} has no utterance that can be used; skipped: {skipped}")
    return usable


def parts_of(spec: str) -> list[str]:
    """The sources that `spec` joins by ``+``."""
    if place_of(spec)[1].exists():  # a path may have a + in it
        return [spec]
    return [part.strip() for part in spec.split("+")]


def place_of(spec: str) -> tuple[str, Path]:
    """The kind that a spec says its folder or file is of, empty if it says none, and its path."""
    path, place = Path(spec).expanduser(), _PLACE.fullmatch(spec)
    if place and not path.exists():
        return place[1], Path(place[2]).expanduser()
    return "", path


def no_such_source(spec: str) -> DataError:
    """What is raised for a spec that names nothing."""
    return DataError(
        f"source {spec!r} is no file or directory, nor embedded:SPLIT, tfds:NAME:SPLIT,"
        " audio:FOLDER or parquet:FOLDER"
    )


def refuse_without_text(spec: str) -> None:
    """Refuses recordings without transcripts where these are needed.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"source {spec!r} has no transcripts, which only training with config.data.text=greedy"
        " can do without: name a source that has some"
    )


def is_dataset(spec: str) -> bool:
    """Whether `spec` names a data set by name and split, not a file or folder."""
    return _DATASET.fullmatch(spec) is not None and not Path(spec).expanduser().exists()


def check_dataset(spec: str) -> None:
    """Refuses a data set that is not known to exist, without making or downloading any.

    Raises:
        DataError: the embedded corpus has no such split.
    """
    dataset = _DATASET.fullmatch(spec)
    if dataset and not dataset[3] and dataset[4].partition("[")[0] not in SPLITS:
        raise DataError(f"source {spec!r} has no such split: choose of {', '.join(SPLITS)}")


def _open(spec: str, data: Data, sample_rate: int, longest: float, needs_text: bool) -> Source:
    kind, path = place_of(spec)
    cache_dir = Path(data.cache_dir).expanduser()
    dataset = _DATASET.fullmatch(spec)
    if dataset and is_dataset(spec):
        check_dataset(spec)
        # Only here: TFDS is slow to import, and files do without it.
        from mtp_jax.data.embedded import embedded
        from mtp_jax.data.tfds_source import tfds_builder, tfds_source

        name, size, catalogued, split = dataset.groups()
        if catalogued:
            builder = tfds_builder(catalogued, data.tfds_dir)
        else:
            builder = embedded(cache_dir, size or "default")
        return tfds_source(name, builder, split, sample_rate, cache_dir)
    if kind == "audio":
        if needs_text:
            refuse_without_text(spec)
        listed = read_folder(path, longest, sample_rate, cache_dir, data.workers)
    if kind == "parquet":
        listed = read_tables(path, needs_text, cache_dir, data.workers)
    if kind:
        return file_source(
            path.name, listed.recordings, listed.problems, sample_rate, data.workers, listed.lengths
        )
    if not spec or not path.exists():
        raise no_such_source(spec)
    if is_packed(path):
        return record_source(path, sample_rate)
    read = read_tree if path.is_dir() else read_manifest
    recordings, problems = read(path, needs_text)
    return file_source(path.name, recordings, problems, sample_rate, data.workers)


def _concatenated(sources: Sequence[Source]) -> Source:
    """All utterances of all sources, one source after the other."""
    ends = [*itertools.accumulate(len(source.utterances) for source in sources)]

    def place(i: int) -> tuple[Source, int]:
        part = bisect.bisect_right(ends, i)
        return sources[part], i - (ends[part - 1] if part else 0)

    def utterance(i: int) -> Utterance:
        source, i = place(i)
        return source.utterances[i]

    def waveform(i: int) -> np.ndarray:
        source, i = place(i)
        return source.waveform(i)

    def digest(i: int) -> str:
        source, i = place(i)
        return source.audio_digest(i)

    return Source(
        name="+".join(source.title for source in sources),
        split="",
        utterances=View(ends[-1], utterance),
        problems=[p for source in sources for p in source.problems],
        waveform=waveform,
        digest=digest,
    )


def _usable(source: Source, max_seconds: float, needs_text: bool) -> Source:
    """`source` less utterances without a needed text or of a length that cannot be batched."""

    def problem(utterance: Utterance) -> Problem | None:
        seconds = utterance.seconds
        if needs_text and not utterance.text.strip():
            return Problem(utterance.id, "no text")
        if seconds <= 0:
            return Problem(utterance.id, "empty audio", text=utterance.text)
        if seconds < MIN_SECONDS:
            detail = f"{seconds:.3f} s, less than {MIN_SECONDS}"
            return Problem(utterance.id, "too short", detail, utterance.text)
        if seconds > max_seconds:
            detail = f"{seconds:.2f} s, more than the {max_seconds:g} of config.data.bucket_seconds"
            return Problem(utterance.id, "too long", detail, utterance.text)
        return None

    found = [problem(utterance) for utterance in source.utterances]
    kept = [i for i, reason in enumerate(found) if reason is None]
    return source.subset(kept, (reason for reason in found if reason is not None))
