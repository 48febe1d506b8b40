"""Folders of recordings without transcripts, of any length: what is too long is cut at pauses.

The cuts are those of `mtp_jax.audio.segmentation`, as in transcribing. Where they lie, and how long
each file is, is found out once: it is kept below ``config.data.cache_dir``, and serves until a
file's size or time of change is another. A part is read from the nearest sample of its file. As
that takes decoding all that lies before it in an MP3 or an MP4, of these the cut audio itself is
kept, too, as FLAC.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tqdm

from mtp_jax import interrupts
from mtp_jax.audio.folders import AudioFolder, shown
from mtp_jax.audio.reading import AudioError, audio_blocks, audio_seconds, reads_parts, refuse
from mtp_jax.audio.segmentation import cut
from mtp_jax.audio.waveform import closed
from mtp_jax.data.files import Listed, Recording
from mtp_jax.data.kept import keep, read_kept, unwritable
from mtp_jax.data.source import DataError, Problem
from mtp_jax.paths import partial_name

_VERSION = 1  # of the cuts: raise it when segmentation or voice activity detection change
_KEEP_EVERY = 60.0  # s


@dataclasses.dataclass(frozen=True)
class _File:
    """What is known of a file.

    Attributes:
        size, modified: of the file then, in bytes and ns.
        seconds: of all of it.
        cuts: start and length, in s, of each part, where it is too long to be one; else None.
        flac: name of the file that holds the parts, one behind another; empty if there is none.
    """

    size: int
    modified: int
    seconds: float
    cuts: Sequence[tuple[float, float]] | None = None
    flac: str = ""


def list_audio(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The recordings below a folder, sorted, by their suffixes, and parts that cannot be read.

    Raises:
        DataError: there are none.
    """
    if not folder.is_dir():
        raise DataError(f"audio:{folder} is no folder: name one that holds recordings")
    walk = AudioFolder(folder)
    files = list(walk.files())
    if not files:
        said = f" ({walk.unreadable[0]})" if walk.unreadable else ""
        raise DataError(
            f"audio:{folder} holds no file with the suffix of a recording{said}: name a folder"
            " with .wav, .flac, .mp3 or the like"
        )
    return files, [Problem(sentence, "unreadable folder") for sentence in walk.unreadable]


def read_folder(
    folder: Path, longest: float, sample_rate: int, cache_dir: Path, workers: int
) -> Listed:
    """The recordings below a folder; those that are too long in parts, without what is silent.

    Args:
        folder: searched with all folders in it.
        longest: seconds of the longest utterance.
        sample_rate: Hz that recordings are cut, and kept, at.
        cache_dir: where cuts are kept, in ``cuts/``.
        workers: threads that look for them.

    Raises:
        DataError: there is nothing in it, or the cuts cannot be kept.
        Interrupted: between two blocks of audio; what was found is kept.
    """
    files, problems = list_audio(folder)
    key = [_VERSION, os.fspath(folder.absolute()), longest, sample_rate]
    kept = cache_dir / "cuts" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    cutter = _Cutter(longest, sample_rate, kept)
    known = _read(kept.with_suffix(".json"))
    names = {path: shown(path.relative_to(folder)) for path in files}
    todo = [path for path in files if not _is_current(path, known.get(names[path]), kept)]
    failed: dict[Path, str] = {}
    if todo:
        try:
            for path, found in _found(cutter, todo, workers, folder.name):
                if isinstance(found, _File):
                    known[names[path]] = found
                else:
                    failed[path] = found
                cutter.keep(known)
        finally:
            cutter.keep(known, now=True)

    listed = Listed([], [], problems)
    for path in files:
        if path in failed:
            problems.append(Problem(names[path], "unreadable audio", failed[path]))
            continue
        file = known[names[path]]
        if file.cuts is None:
            listed.recordings.append(Recording(names[path], path, ""))
            listed.lengths.append(file.seconds)
        elif not file.cuts:
            problems.append(
                Problem(names[path], "no speech", f"nobody speaks in its {file.seconds:.1f} s")
            )
        else:
            listed.recordings.extend(_parts(names[path], path, file, kept))
            listed.lengths.extend(seconds for _, seconds in file.cuts)
    return listed


def _parts(name: str, path: Path, file: _File, kept: Path) -> Iterator[Recording]:
    """The utterances of a recording that is cut."""
    behind = 0.0  # s of those before, in the FLAC
    for start, seconds in file.cuts or ():
        at = (kept / file.flac, behind) if file.flac else (path, start)
        yield Recording(f"{name}@{start:.2f}", at[0], "", offset=at[1], duration=seconds)
        behind += seconds


def _found(
    cutter: _Cutter, files: Sequence[Path], workers: int, title: str
) -> Iterator[tuple[Path, _File | str]]:
    """Each file with what is found out of it, or why it cannot be read, as threads are done."""
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=len(files), desc=f"cutting {title}", unit="file", delay=2) as bar,
    ):
        running = {pool.submit(cutter, path): path for path in files}
        try:
            for future in concurrent.futures.as_completed(running):
                try:
                    yield running[future], future.result()
                except AudioError as error:
                    yield running[future], str(error)
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Cutter:
    """Finds out where recordings are cut.

    Args:
        longest: seconds of a part.
        sample_rate: Hz.
        kept: the index without its suffix, and folder of audio that is kept.
    """

    def __init__(self, longest: float, sample_rate: int, kept: Path) -> None:
        self._longest, self._rate, self._kept = longest, sample_rate, kept
        self._last = time.monotonic()

    def __call__(self, path: Path) -> _File:
        """What is found out of a file.

        Raises:
            AudioError: it cannot be read.
            DataError: its audio cannot be kept.
            Interrupted: between two blocks.
        """
        interrupts.raise_if_requested()
        try:
            status = path.stat()
        except OSError as error:
            raise AudioError(f"{path} cannot be read: {error.strerror}") from None
        file = _File(status.st_size, status.st_mtime_ns, audio_seconds(path))
        if file.seconds <= self._longest:
            return file
        if reads_parts(path):
            return dataclasses.replace(file, cuts=self._cuts(path))
        name = hashlib.sha256(f"{path} {file.size} {file.modified}".encode(errors="replace"))
        flac = f"{name.hexdigest()[:32]}.flac"
        partial = self._kept / partial_name()
        try:
            self._kept.mkdir(parents=True, exist_ok=True)
            with soundfile.SoundFile(
                partial, "w", self._rate, 1, subtype="PCM_16", format="FLAC"
            ) as writer:
                cuts = self._cuts(path, writer)
            partial.replace(self._kept / flac)
        except OSError as error:
            raise unwritable(self._kept / flac, error) from None
        except soundfile.LibsndfileError as error:  # it tells no number of the error
            raise unwritable(self._kept / flac, OSError(0, error.error_string)) from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return dataclasses.replace(file, cuts=cuts, flac=flac)

    def _cuts(
        self, path: Path, writer: soundfile.SoundFile | None = None
    ) -> list[tuple[float, float]]:
        """Start and length of each part; their audio goes to `writer`."""
        cuts = []
        for chunk in cut(self._blocks(path), self._rate, self._longest):
            # By a rounded end one may be a sample longer.
            audio = chunk.audio[: math.floor(self._longest * self._rate)]
            cuts.append((chunk.start, len(audio) / self._rate))
            if writer:
                writer.write(audio)
        return cuts

    def _blocks(self, path: Path) -> Iterator[np.ndarray]:
        blocks = audio_blocks(path, self._rate, warn=refuse)
        with closed(blocks):
            for block in blocks:
                interrupts.raise_if_requested()
                yield block

    def keep(self, known: dict[str, _File], now: bool = False) -> None:
        """Keeps what is known of the files, now and then, or now."""
        if now or time.monotonic() - self._last > _KEEP_EVERY:
            files = {name: dataclasses.asdict(file) for name, file in known.items()}
            keep(self._kept.with_suffix(".json"), files)
            self._last = time.monotonic()


def _read(path: Path) -> dict[str, _File]:
    """What was kept; nothing where there is nothing, or something damaged."""
    found = read_kept(path)
    try:
        return {name: _file(**values) for name, values in found.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _file(size: int, modified: int, seconds: float, cuts: Any, flac: str) -> _File:
    pairs = None if cuts is None else [(float(start), float(length)) for start, length in cuts]
    if flac != Path(flac).name:
        raise ValueError(flac)
    return _File(int(size), int(modified), float(seconds), pairs, flac)


def _is_current(path: Path, file: _File | None, kept: Path) -> bool:
    """Whether `file` is about the file as it is now, and its audio is still there."""
    if file is None:
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    unchanged = (status.st_size, status.st_mtime_ns) == (file.size, file.modified)
    return unchanged and (not file.flac or (kept / file.flac).is_file())
