"""From names on a command line to recordings, and to the files that their transcripts go to."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mtp_jax.transcription.formats import formatted
from mtp_jax.transcription.results import Transcript

# What is taken of a folder. The last line cannot be read, which is said of each of them.
SUFFIXES = {
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".w64", ".rf64", ".wv", ".mp2", ".sph", ".nist", ".voc"),
    *(".m4a", ".aac", ".mp4", ".m4b", ".wma", ".webm", ".mkv", ".mov", ".amr"),
}


class Task(NamedTuple):
    """One recording.

    Attributes:
        path: of its file.
        name: of its outputs below the output folder, without the suffix.
    """

    path: Path
    name: Path


def find(arguments: Sequence[str]) -> tuple[list[Task], list[str]]:
    """The recordings that files, folders and globs stand for, each once.

    Of a folder all that looks like audio by its suffix is taken, folders in it included; its
    outputs are named as in the folder. Where two recordings would share a name, theirs keep the
    suffix, and where that is not enough, they become the whole path.

    Returns:
        Recordings, and a sentence for each argument that stands for none.
    """
    found: dict[str, Task] = {}
    missing = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.exists() or path.is_symlink():
            paths = [path]
        else:
            paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # of any root
        tasks = [task for one in paths for task in _tasks(one)]
        for task in tasks:
            found.setdefault(os.path.realpath(task.path), task)
        if not paths:
            missing.append(f"{shown(argument)} does not exist, and matches nothing")
        elif not tasks:
            missing.append(f"{shown(argument)} holds no file with the suffix of a recording")
    tasks = list(found.values())
    bare, full = Counter(_bare(task.name) for task in tasks), Counter(task.name for task in tasks)

    def unique(task: Task) -> Path:
        if bare[_bare(task.name)] == 1:
            return _bare(task.name)
        whole = task.path.absolute()
        return task.name if full[task.name] == 1 else whole.relative_to(whole.anchor)

    return [task._replace(name=unique(task)) for task in tasks], missing


def _bare(name: Path) -> Path:
    return name.with_suffix("") if name.suffix.lower() in SUFFIXES else name


def _tasks(path: Path) -> Iterable[Task]:
    if not path.is_dir():
        return [Task(path, Path(path.name))]
    files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return [Task(f, f.relative_to(path)) for f in files if f.suffix.lower() in SUFFIXES]


def outputs(task: Task, folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """The files that a recording's transcript goes to, by format."""
    return {kind: folder / f"{task.name}.{kind}" for kind in formats}


def finished(task: Task, files: Iterable[Path]) -> bool:
    """Whether all files are there, none older than the recording."""
    try:
        made = task.path.stat().st_mtime
        return all(file.stat().st_mtime >= made for file in files)
    except OSError:
        return False


def write(transcript: Transcript, files: dict[str, Path]) -> None:
    """Writes a transcript, each file whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    for kind, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial"[-255:])
        try:
            partial.write_text(formatted(transcript, kind), encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def shown(path: str | os.PathLike[str]) -> str:
    """A path on one line, whatever its bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
