"""The files that transcripts go to, and what a run has to write of them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from mtp_jax.audio.folders import shown
from mtp_jax.paths import OutputError
from mtp_jax.transcription.finding import Task
from mtp_jax.transcription.formats import formatted
from mtp_jax.transcription.marks import Identity, Model, mark_path, read_mark, sha256, write_marked
from mtp_jax.transcription.results import Transcript

# After these every other output would fail too.
_DISK_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


NOTHING = Identity("", 0, 0, 0)


class State(enum.Enum):
    """Of an output that was there before."""

    FINISHED = "is of this recording, model and strategy"
    EDITED = "is, but was changed since it was written"
    STALE = "is of the recording as it was, or of another model or strategy"
    MISSING = "is not there, or not whole"


class Clash(Exception):
    """A file in the place of an output that only a person can decide about."""


@dataclasses.dataclass
class Job:
    """A recording and the outputs that it still needs.

    Attributes:
        task: which recording.
        recording: it, as it was when it was planned, and then when it was read.
        files: by format, to be written.
        states: of all its outputs.
        overwrite: whatever is in their place.
    """

    task: Task
    recording: Identity = NOTHING
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    states: set[State] = dataclasses.field(default_factory=set)
    overwrite: bool = False

    def begin(self) -> Path:
        """Notes the recording as it is now, when it is to be read; the path to read."""
        self.recording = identity(self.task)
        return self.task.path


def identity(task: Task) -> Identity:
    """That of a recording as it is now; of one that cannot be found, that of nothing."""
    try:
        return Identity.of(task.path, has_path=not task.is_stdin)
    except OSError:  # said when it is its turn
        return NOTHING


def outputs(task: Task, folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """The files that a recording's transcript goes to, by format."""
    return {kind: folder / f"{task.name}.{kind}" for kind in formats}


@dataclasses.dataclass
class Plan:
    """What a run does.

    Attributes:
        jobs: recordings to transcribe; `finished`: those whose outputs stand as they are.
        clashes: a sentence for each recording whose outputs cannot be written.
    """

    jobs: list[Job]
    finished: list[Job]
    clashes: list[str]


def plan(
    tasks: Sequence[Task], folder: Path, formats: Sequence[str], model: Model, overwrite: bool
) -> Plan:
    """What is to be done; no recording is decoded for it, and nothing written.

    An output is finished if its mark says that it is of this recording (by path, size and times,
    else by content), this model and this strategy. It is written again if its mark says that it is
    of the same file before that changed, or of another model or strategy. Whatever else is in its
    place stays, unless told to `overwrite`: the text of another recording, a file without a mark.

    Args:
        tasks: recordings; `folder`, `formats`: of the outputs.
        model: that transcribes.
        overwrite: write all of them.
    """
    found = Plan([], [], [])
    users: dict[Path, list[Task]] = collections.defaultdict(list)
    for task in tasks:
        for file in outputs(task, folder, formats).values():
            users[file].append(task)
    for task in tasks:
        files = outputs(task, folder, formats)
        try:
            for file in files.values():
                _refuse_shared(file, task, users)
            recording, anyway = identity(task), overwrite or not task.path.exists()
            states = {
                kind: _state(file, task, recording, model, anyway) for kind, file in files.items()
            }
        except Clash as clash:
            found.clashes.append(str(clash))
            continue
        keep = (State.FINISHED, State.EDITED)
        todo = {kind: file for kind, file in files.items() if states[kind] not in keep}
        job = Job(task, recording, todo, set(states.values()), overwrite)
        (found.jobs if todo else found.finished).append(job)
    return found


def _refuse_shared(file: Path, task: Task, users: dict[Path, list[Task]]) -> None:
    others = [other for other in users[file] if other is not task]
    others += [other for parent in file.parents for other in users.get(parent, ())]
    if others:
        raise Clash(
            f"{task.shown} and {others[0].shown} would both be written to {shown(file)}: give them"
            " in two commands, with another --output_dir each"
        )


def _state(file: Path, task: Task, recording: Identity, model: Model, overwrite: bool) -> State:
    """That of an output.

    Raises:
        Clash: something else is in its place.
    """
    where = shown(file)
    try:
        if file.is_dir():
            raise Clash(f"{where} is a folder: move it, or choose another --output_dir")
        _refuse_unwritable(file)
        _refuse_unwritable(mark_path(file))
        digest = sha256(file)
    except OSError as error:
        raise Clash(
            f"{where} cannot be written ({error.strerror}): choose another --output_dir, or"
            " another name for the recording"
        ) from None
    if not digest or overwrite:
        return State.MISSING
    remedy = "choose another --output_dir, move it, or --overwrite it"
    mark = read_mark(file)
    if mark is None or digest not in (mark.output, mark.replaces):
        if mark is None:
            raise Clash(f"{where} was not written by this command, or by an old version: {remedy}")
        if mark.model == model and _same(mark.recording, recording, task):
            return State.EDITED
        raise Clash(
            f"{where} was changed since it was written, of an earlier recording, model or"
            f" strategy: {remedy}"
        )
    if digest != mark.output:
        return State.MISSING  # the process that would have replaced it was killed
    if _same(mark.recording, recording, task):
        return State.FINISHED if mark.model == model else State.STALE
    if not recording.path or mark.recording.path != recording.path:
        of = shown(mark.recording.path) if mark.recording.path else "what standard input held"
        raise Clash(f"{where} is of another recording, {of}: {remedy}")
    return State.STALE


def _refuse_unwritable(file: Path) -> None:
    """Raises OSError if the file's folder can be seen to take no files, or not this name."""
    with contextlib.suppress(FileNotFoundError):
        file.lstat()
    parent = next(each for each in file.parents if os.path.lexists(each))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _same(marked: Identity, recording: Identity, task: Task) -> bool:
    """Whether both are the same recording: the same file unchanged, or the same content."""
    if marked.same_file(recording):
        return True
    try:
        return marked.size == recording.size and marked.sha256 == sha256(task.path)
    except OSError:
        return False


def write(transcript: Transcript, job: Job, model: Model) -> None:
    """Writes the outputs of a recording and their marks, each whole or not at all.

    Raises:
        Clash: the recording changed, or something else took the place of an output meanwhile.
        OutputError: one cannot be written, and nor could those of other recordings.
        OSError: one cannot be written.
    """
    task = job.task
    try:
        recording = dataclasses.replace(job.recording, sha256=sha256(task.path))
        if identity(task) != job.recording:
            raise Clash(f"{task.shown} changed while it was read: repeat once it is whole")
        for kind, file in job.files.items():
            _state(file, task, recording, model, job.overwrite)
            write_marked(file, formatted(transcript, kind).encode(), recording, model)
    except OSError as error:
        if error.errno not in _DISK_FAILED:
            raise
        raise OutputError(
            f"the texts of {task.shown} cannot be written ({error.strerror}): what is finished"
            " stays, and the same command goes on"
        ) from None
