"""Packs manifests of any size into the folders that `records` reads, in parallel, resumably.

What goes into a shard depends on the manifest and the shard's size alone. A shard counts once its
list of utterances stands beside it; one that was interrupted is made again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile
import tqdm

from mtp_jax import interrupts
from mtp_jax.audio.reading import AudioError, read_audio
from mtp_jax.data.files import Recording
from mtp_jax.data.librispeech import read_tree
from mtp_jax.data.manifest import iterate_manifest
from mtp_jax.data.records import INDEX, from_lines, shard_name, to_line, write_index
from mtp_jax.data.source import DataError, Problem, Utterance


class Packed(NamedTuple):
    """What was packed.

    Attributes:
        utterances, problems: how many are in the folder, and were left out.
        shards: files of records.
        made: how many of them this call made.
    """

    utterances: int
    problems: int
    shards: int
    made: int


def pack(
    spec: str,
    folder: Path,
    *,
    sample_rate: int = 16_000,
    shard_size: int = 4096,
    workers: int = 2,
) -> Packed:
    """Packs manifests or LibriSpeech directories into `folder`.

    Args:
        spec: paths, joined by ``+``.
        folder: made if need be; one that was begun by the same call is completed.
        sample_rate: Hz that the audio is kept at.
        shard_size: utterances a file.
        workers: processes.

    Raises:
        DataError: nothing can be read, or the folder holds something else or cannot be written.
        Interrupted: before another file is begun; the same call goes on with it.
    """
    parts = folder / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _claim(folder / "pack.json", spec, sample_rate, shard_size)
        if (folder / INDEX).is_file():
            return Packed(*_count(_parts(parts)), made=0)
        made, shards = 0, 0
        with (
            concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _end_with_parent, (os.getpid(),)
            ) as pool,
            tqdm.tqdm(desc=f"packing {spec}", unit="utterance", delay=2) as bar,
            _ended_at_once(),
        ):
            running: dict[concurrent.futures.Future[int], int] = {}
            listed = _items(spec)
            while items := list(itertools.islice(listed, shard_size)):
                shard, shards = shards, shards + 1
                if _part(parts, shard).is_file():
                    bar.update(len(items))
                    continue
                interrupts.raise_if_requested()
                made += 1
                with interrupts.shielded():  # a process may be started for it
                    future = pool.submit(_make, folder, shard, items, sample_rate)
                running[future] = len(items)
                _wait(running, 2 * workers - 1, bar)  # the manifest is read as fast as it is packed
            _wait(running, 0, bar)
        if not shards:
            raise DataError(f"{spec} lists nothing to pack")
        partial = folder / f".{INDEX}.{os.getpid()}"
        counts = write_index(partial, _parts(parts), sample_rate)
        partial.replace(folder / INDEX)
        return Packed(*counts, made)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from error
    except concurrent.futures.BrokenExecutor as error:
        interrupts.raise_if_requested()  # SIGTERM to a whole group of processes
        raise DataError(
            f"a process that packs {spec} was killed: run the same command again, with fewer"
            " --workers if memory was short"
        ) from error


def _items(spec: str) -> Iterator[Recording | Problem]:
    """What `spec` lists, in order; no audio is opened."""
    paths = [spec] if Path(spec).expanduser().exists() else spec.split("+")
    for name in paths:
        path = Path(name.strip()).expanduser()
        if path.is_dir():
            recordings, problems = read_tree(path)
            yield from recordings
            yield from problems
        elif path.exists():
            yield from iterate_manifest(path)
        else:
            raise DataError(
                f"{name!r} is no manifest or LibriSpeech directory: these are what can be packed"
            )


def _claim(path: Path, spec: str, sample_rate: int, shard_size: int) -> None:
    """Notes what the folder is of, or checks it."""
    if any("://" in part for part in spec.split("+")):
        raise DataError(f"{spec!r} lies in a bucket: mount the bucket as a folder")
    files = [Path(part.strip()).expanduser() for part in spec.split("+")]
    sizes = [f.stat().st_size if f.is_file() else 0 for f in files]
    ours = {"data": spec, "sizes": sizes, "sample_rate": sample_rate, "shard_size": shard_size}
    if not path.is_file():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(ours, indent=1) + "\n")
        partial.replace(path)
        return
    try:
        theirs = json.loads(path.read_text())
        changed = [name for name in ours if theirs[name] != ours[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: remove the folder") from error
    if changed:
        raise DataError(
            f"{path.parent} was begun with other {', '.join(changed)}: choose another folder, or"
            " the same"
        )


def _make(folder: Path, shard: int, items: list[Recording | Problem], sample_rate: int) -> int:
    """Writes one shard, and then its list; in a process of its own."""
    from array_record.python.array_record_module import ArrayRecordWriter

    name = shard_name(shard)
    partial = folder / f".{name}.{os.getpid()}"
    # Groups of one: any record can be read without its neighbours.
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    listed: list[Utterance | Problem] = []
    for item in items:
        made = item if isinstance(item, Problem) else _record(item, sample_rate)
        if isinstance(made, Problem):
            listed.append(made)
        else:
            utterance, flac = made
            writer.write(flac)
            listed.append(utterance)
    writer.close()
    partial.replace(folder / name)
    part = _part(folder / "parts", shard)
    partial = part.with_name(f".{part.name}.{os.getpid()}")
    partial.write_text("".join(f"{to_line(item)}\n" for item in listed), encoding="utf-8")
    partial.replace(part)
    return shard


def _record(recording: Recording, sample_rate: int) -> tuple[Utterance, bytes] | Problem:
    if not recording.text.strip():
        return Problem(recording.id, "no text")
    if not recording.path.is_file():
        return Problem(recording.id, "missing file", str(recording.path))
    r = recording
    try:
        audio = read_audio(r.path, sample_rate, r.offset, r.duration)
    except AudioError as error:
        return Problem(r.id, "unreadable audio", str(error))
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format="FLAC", subtype="PCM_16")
    seconds = len(audio) / sample_rate
    return Utterance(r.id, r.text, seconds, r.speaker, r.lang), file.getvalue()


def _part(parts: Path, shard: int) -> Path:
    return parts / f"{shard:05d}.jsonl"


def _parts(parts: Path) -> Iterator[Iterator[Utterance | Problem]]:
    """What stands in the list of each shard, in order."""
    for path in sorted(parts.glob("[0-9]*.jsonl"), key=lambda path: int(path.stem)):
        with path.open(encoding="utf-8") as lines:
            yield from_lines(lines)


def _count(shards: Iterable[Iterable[Utterance | Problem]]) -> tuple[int, int, int]:
    """Utterances, problems and shards."""
    found = [[isinstance(item, Problem) for item in shard] for shard in shards]
    problems = sum(map(sum, found))
    return sum(map(len, found)) - problems, problems, len(found)


def _wait(running: dict[concurrent.futures.Future[int], int], most: int, bar: tqdm.tqdm) -> None:
    """Returns once no more than `most` are running."""
    while len(running) > most:
        first = concurrent.futures.FIRST_COMPLETED
        done, _ = concurrent.futures.wait(running, timeout=0.2, return_when=first)
        for future in done:
            bar.update(running.pop(future))
            future.result()
        interrupts.raise_if_requested()


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """Ends worker processes where its body is interrupted: what they have begun is made again."""
    try:
        yield
    except interrupts.Interrupted:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _end_with_parent(parent: int) -> None:
    """Ends this process once the one that started it is gone, however that went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
