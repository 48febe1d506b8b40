"""Packs manifests of any size into the folders that `records` reads, in parallel, resumably.

What goes into a shard depends on the manifest and the shard's size alone. A shard counts once its
list of utterances stands beside it; one that was interrupted is made again, and so is one that the
manifest has other lines for by now: a manifest may be mended, and only what it changes is redone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import tqdm
from safetensors import SafetensorError

from mtp_jax import interrupts
from mtp_jax.audio.reading import AudioError
from mtp_jax.config import Data
from mtp_jax.data.audio_folder import list_audio, read_folder
from mtp_jax.data.checking import check_manifest
from mtp_jax.data.files import Recording
from mtp_jax.data.librispeech import read_tree
from mtp_jax.data.manifest import iterate_manifest
from mtp_jax.data.parquet_source import list_tables, read_tables
from mtp_jax.data.records import INDEX, from_lines, shard_name, to_line, write_index
from mtp_jax.data.source import DataError, Problem, Utterance
from mtp_jax.data.sources import parts_of, place_of
from mtp_jax.paths import PARTIAL, check_writable, partial_name, write_whole


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
    needs_text: bool = True,
    longest: float = 30.0,
    cache_dir: str = Data.cache_dir,
) -> Packed:
    """Packs manifests, LibriSpeech directories, folders of audio or tables into `folder`.

    Args:
        spec: paths, ``audio:FOLDER`` or ``parquet:FOLDER_OR_FILE``, joined by ``+``.
        folder: made if need be; one that was begun by the same call is completed.
        sample_rate: Hz that the audio is kept at.
        shard_size: utterances a file.
        workers: processes.
        needs_text: whether what has no text is left out.
        longest: seconds of a part of a recording in ``audio:FOLDER``.
        cache_dir: where it is kept how such a folder is cut, and what is in tables.

    Raises:
        DataError: nothing can be read, or the folder holds something else or cannot be written.
        OutputError: the folder cannot be written, as is seen at the start.
        Interrupted: before another file is begun; the same call goes on with it.
    """
    places = _check(spec, needs_text)
    options = {
        "data": spec,
        "sample_rate": sample_rate,
        "shard_size": shard_size,
        "text": None if needs_text else False,
        "longest": longest if any(kind == "audio" for kind, _ in places) else None,
    }
    check_writable(folder, "output")
    parts = folder / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        finished = _claim(folder / "pack.json", options, places)
        if finished and (folder / INDEX).is_file():
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
            listed = _items(
                *(places, needs_text, longest, sample_rate, Path(cache_dir).expanduser(), workers)
            )
            while items := list(itertools.islice(listed, shard_size)):
                shard, shards = shards, shards + 1
                digest = _digest(items)
                if _digest_of_part(_part(parts, shard)) == digest:
                    bar.update(len(items))
                    continue
                interrupts.raise_if_requested()
                made += 1
                with interrupts.shielded():  # a process may be started for it
                    future = pool.submit(
                        _make, folder, shard, items, digest, sample_rate, needs_text
                    )
                running[future] = len(items)
                _wait(running, 2 * workers - 1, bar)  # the manifest is read as fast as it is packed
            _wait(running, 0, bar)
        if not shards:
            raise DataError(f"{spec} lists nothing to pack")
        _remove_from(shards, folder)
        partial = folder / partial_name()
        counts = write_index(partial, _parts(parts), sample_rate)
        partial.replace(folder / INDEX)
        return Packed(*counts, made)
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        said = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder} cannot be written ({said}): {'make room' if full else 'mend that'}, and the"
            " same command goes on; finished files stay"
        ) from error
    except concurrent.futures.BrokenExecutor as error:
        interrupts.raise_if_requested()  # SIGTERM to a whole group of processes
        raise DataError(
            f"a process that packs {spec} was killed: run the same command again, with fewer"
            " --workers if memory was short"
        ) from error
    finally:
        _remove_partial(folder, parts)


def _remove_partial(*folders: Path) -> None:
    """Removes files that are not whole, of processes that were ended, now or in an earlier call."""
    for folder in folders:
        for file in folder.glob(PARTIAL):
            with contextlib.suppress(OSError):
                file.unlink()


def _check(spec: str, needs_text: bool) -> list[tuple[str, Path]]:
    """Kinds and paths of what `spec` joins, all looked into before any of it is packed."""
    places = []
    for name in parts_of(spec):
        kind, path = place_of(name)
        places.append((kind, path))
        if "://" in name:
            raise DataError(f"{spec!r} lies in a bucket: mount the bucket as a folder")
        if kind == "audio":
            if needs_text:
                raise DataError(
                    f"{name!r} has no transcripts: add --notranscripts if it is for training with"
                    " config.data.text=greedy"
                )
            list_audio(path)
            continue
        if kind == "parquet":
            list_tables(path)
            continue
        if not name or not path.exists():
            raise DataError(
                f"{name!r} is no manifest or LibriSpeech directory, nor audio:FOLDER or"
                " parquet:FOLDER: these are what can be packed"
            )
        if path.is_file() and path.stat().st_size:  # an empty one adds nothing
            check_manifest(path, needs_text)
    return places


def _items(
    places: Iterable[tuple[str, Path]],
    needs_text: bool,
    longest: float,
    sample_rate: int,
    cache_dir: Path,
    workers: int,
) -> Iterator[Recording | Problem]:
    """What `places` list, in order; of manifests and trees no audio is opened."""
    for kind, path in places:
        if kind:
            listed = (
                read_folder(path, longest, sample_rate, cache_dir, workers)
                if kind == "audio"
                else read_tables(path, needs_text, cache_dir, workers)
            )
            yield from listed.recordings
            yield from listed.problems
        elif path.is_dir():
            recordings, problems = read_tree(path, needs_text)
            yield from recordings
            yield from problems
        else:
            yield from iterate_manifest(path, needs_text)


def _claim(path: Path, options: dict[str, Any], places: list[tuple[str, Path]]) -> bool:
    """Notes what the folder is of, or checks it; whether it was of this, unchanged, before."""
    files: list[Any] = []
    for kind, place in places:
        if kind:
            listed = list_tables(place) if kind == "parquet" else list_audio(place)[0]
            stats = [[os.fspath(file), *_version(file)] for file in listed]
            files.append(hashlib.sha256(json.dumps(stats).encode()).hexdigest())
        elif place.is_file():
            files.append(_version(place))
    ours = options | {"files": files}
    if path.is_file():
        try:
            theirs = {"text": None, "longest": None, **json.loads(path.read_text())}
            changed = [n for n in ours if n != "files" and theirs[n] != ours[n]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read: remove the folder") from error
        if changed:
            raise DataError(
                f"{path.parent} was begun with other {', '.join(changed)}: choose another folder,"
                " or the same"
            )
        if "files" not in theirs:
            raise DataError(
                f"{path.parent} was packed by an earlier version: train on it if it is finished, or"
                " pack into another folder"
            )
        if theirs == ours:
            return True
    path.with_name(INDEX).unlink(missing_ok=True)  # until all shards are of this manifest
    write_whole(path, (json.dumps(ours, indent=1) + "\n").encode())
    return False


def _version(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(items: Iterable[Recording | Problem]) -> str:
    """SHA-256 of what a shard is made of, as the manifest has it."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(
            json.dumps([type(item).__name__, dataclasses.asdict(item)], default=str).encode()
        )
    return whole.hexdigest()


def _digest_of_part(part: Path) -> str:
    """The digest that a shard's list begins with; empty if there is none."""
    try:
        with part.open(encoding="utf-8") as lines:
            return _header(lines.readline())
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _header(line: str) -> str:
    kind, [digest] = json.loads(line)
    return str(digest) if kind == "Items" else ""


def _remove_from(shard: int, folder: Path) -> None:
    """Removes shards of a manifest that was longer."""
    for part in _listed(folder / "parts"):
        if int(part.stem) >= shard:
            part.unlink()
            (folder / shard_name(int(part.stem))).unlink(missing_ok=True)


def _make(
    folder: Path,
    shard: int,
    items: list[Recording | Problem],
    digest: str,
    sample_rate: int,
    needs_text: bool,
) -> int:
    """Writes one shard, and then its list; in a process of its own.

    Raises:
        OSError: they cannot be written.
    """
    part = _part(folder / "parts", shard)
    part.unlink(missing_ok=True)  # the list of what the shard was
    partial = folder / partial_name()
    try:
        listed = _write_records(partial, items, sample_rate, needs_text)
        partial.replace(folder / shard_name(shard))
    finally:
        partial.unlink(missing_ok=True)
    lines = [json.dumps(["Items", [digest]]), *map(to_line, listed)]
    write_whole(part, "".join(f"{line}\n" for line in lines).encode())
    return shard


def _write_records(
    file: Path, items: list[Recording | Problem], sample_rate: int, needs_text: bool = True
) -> list[Utterance | Problem]:
    from array_record.python.array_record_module import ArrayRecordWriter

    listed: list[Utterance | Problem] = []
    try:
        # Groups of one: any record can be read without its neighbours.
        writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        try:
            for item in items:
                made = item if isinstance(item, Problem) else _record(item, sample_rate, needs_text)
                if isinstance(made, Problem):
                    listed.append(made)
                else:
                    utterance, flac = made
                    writer.write(flac)
                    listed.append(utterance)
        finally:
            writer.close()
    except RuntimeError as error:  # it tells neither number nor file apart
        full = "No space left" in str(error)
        said = os.strerror(errno.ENOSPC) if full else str(error).partition(";")[0]
        raise OSError(errno.ENOSPC if full else errno.EIO, said) from None
    return listed


def _record(
    recording: Recording, sample_rate: int, needs_text: bool
) -> tuple[Utterance, bytes] | Problem:
    for field in ("id", "text", "speaker", "lang"):
        try:
            getattr(recording, field).encode()
        except UnicodeEncodeError:
            return Problem(recording.id, "wrong field", f"{field} is not Unicode")
    if needs_text and not recording.text.strip():
        return Problem(recording.id, "no text")
    if not recording.path.is_file():
        return Problem(recording.id, "missing file", str(recording.path), recording.text)
    r = recording
    try:
        audio = r.read(sample_rate)
    except AudioError as error:
        return Problem(r.id, "unreadable audio", str(error), r.text)
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format="FLAC", subtype="PCM_16")
    seconds = len(audio) / sample_rate
    return Utterance(r.id, r.text, seconds, r.speaker, r.lang), file.getvalue()


def _part(parts: Path, shard: int) -> Path:
    return parts / f"{shard:05d}.jsonl"


def _parts(parts: Path) -> Iterator[Iterator[Utterance | Problem]]:
    """What stands in the list of each shard, in order."""
    for path in _listed(parts):
        with path.open(encoding="utf-8") as lines:
            lines.readline()  # the digest
            yield from_lines(lines)


def _listed(parts: Path) -> list[Path]:
    return sorted(parts.glob("[0-9]*.jsonl"), key=lambda path: int(path.stem))


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
        try:
            for future in done:
                bar.update(running.pop(future))
                future.result()
        except OSError:
            for future in running:  # each would fail as this one did
                future.cancel()
            raise
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
