"""From names on a command line to recordings."""

from __future__ import annotations

import dataclasses
import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mtp_jax.audio.folders import SUFFIXES, AudioFolder, shown

_SHOWN = 3  # names for each reason


@dataclasses.dataclass(frozen=True)
class Task:
    """One recording.

    Attributes:
        path: of its file.
        name: of its outputs below the output folder, without the suffix.
        is_stdin: it came by standard input, and `path` is where that was put.
    """

    path: Path
    name: Path
    is_stdin: bool = False

    @property
    def shown(self) -> str:
        """What people are told of it."""
        return "standard input" if self.is_stdin else shown(self.path)


@dataclasses.dataclass
class Found:
    """What a command line stands for.

    Attributes:
        tasks: the recordings.
        missing: a sentence for each argument, or part of a folder, that cannot be read.
        left_out: a sentence on the files of folders that do not look like audio; empty if none.
    """

    tasks: list[Task]
    missing: list[str]
    left_out: str = ""


def find(arguments: Sequence[str], stdin: Path | None = None) -> Found:
    """The recordings that files, folders and globs stand for, each once.

    Of a folder all that looks like audio by its suffix is taken, with the folders in it, linked
    ones included; each folder is entered once, so that loops of links end. Names that begin with a
    dot are passed over. Outputs are named as in the folder. Where two recordings would share a
    name, theirs keep the suffix, and where that is not enough, they become the whole path.

    Args:
        arguments: of the command line.
        stdin: a file of what standard input held, which ``-`` stands for.
    """
    tasks: dict[str, Task] = {}
    others: list[str] = []
    missing = []
    for argument in arguments:
        if argument == "-" and stdin is not None:
            tasks.setdefault(os.fspath(stdin), Task(stdin, Path("stdin"), is_stdin=True))
            continue
        path = Path(os.path.expanduser(argument))  # noqa: PTH111  # leaves unknown users alone
        try:
            path.stat()
            paths = [path]
        except FileNotFoundError:
            # A link that leads nowhere is said to when it is read.
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # of any root
            paths = [path] if path.is_symlink() else [Path(match) for match in matches]
        except OSError as error:
            missing.append(f"{shown(argument)} cannot be read ({error.strerror})")
            continue
        if not paths:
            missing.append(f"{shown(argument)} does not exist, and matches nothing")
            continue
        any_found = False
        for each in paths:
            if not each.is_dir():
                any_found = True
                tasks.setdefault(os.path.realpath(each), Task(each, Path(each.name)))
                continue
            folder = AudioFolder(each)
            for file in folder.files():
                any_found = True
                tasks.setdefault(os.path.realpath(file), Task(file, file.relative_to(each)))
            others += folder.others
            missing += folder.unreadable
            any_found = any_found or bool(folder.unreadable)
        if not any_found:
            missing.append(f"{shown(argument)} holds no file with the suffix of a recording")
    left_out = f"{_few(others)} left out: without the suffix of a recording" if others else ""
    return Found(_named(list(tasks.values())), missing, left_out)


def few(tasks: Sequence[Task]) -> str:
    """How many there are, with the first names."""
    return _few([task.shown for task in tasks])


def _few(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"


def _named(tasks: Sequence[Task]) -> list[Task]:
    """Tasks with names that are all different, also where upper and lower case are the same."""
    bare = Counter(_alike(_bare(task.name)) for task in tasks)
    full = Counter(_alike(task.name) for task in tasks)

    def name(task: Task) -> Path:
        if bare[_alike(_bare(task.name))] == 1:
            return _bare(task.name)
        if full[_alike(task.name)] == 1:
            return task.name
        return Path(*task.path.absolute().parts[1:])

    return [dataclasses.replace(task, name=name(task)) for task in tasks]


def _alike(name: Path) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold()


def _bare(name: Path) -> Path:
    return name.with_suffix("") if name.suffix.lower() in SUFFIXES else name
