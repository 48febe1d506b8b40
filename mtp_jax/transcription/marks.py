"""Marks of finished outputs: of which recording, model and strategy a text is.

The mark of ``out/talk.txt`` is ``out/.mtp_jax/talk.txt``, a JSON object. Each output has its own,
so that several processes may write to one folder, folders may be moved with their marks, and no
file grows with the number of recordings. The name of a mark is no longer than its output's, so that
the disk takes both or none.

A mark is written, whole, before its output is. It holds the digests of what the output will be and
of what it replaces: whatever is killed when, the output itself tells how far it came.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mtp_jax.paths import write_whole

_FOLDER = ".mtp_jax"


@dataclasses.dataclass(frozen=True)
class Model:
    """What makes texts of recordings.

    Attributes:
        digest: of the model, `mtp_jax.inference.model_folder.model_digest`.
        strategy: with its options, such as ``Threshold(tau=0.9)``.
    """

    digest: str
    strategy: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which recording a text is of.

    Attributes:
        path: of its file, without links; empty of what came by standard input.
        size: in bytes.
        mtime_ns, ctime_ns: when the content, or anything of the file, last changed.
        sha256: of the content; empty until something asks for it.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str = ""

    @classmethod
    def of(cls, file: Path, has_path: bool = True) -> Identity:
        """That of a file as it is now; raises OSError if there is none."""
        status = file.stat()
        path = os.path.realpath(file) if has_path else ""
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_file(self, other: Identity) -> bool:
        """Whether it is that very file, not changed since; no content is read."""
        ours, theirs = (dataclasses.replace(x, sha256="") for x in (self, other))
        return bool(self.path) and ours == theirs


@dataclasses.dataclass(frozen=True)
class Mark:
    """What stands in a mark.

    Attributes:
        recording, model: what the output was made of.
        output: SHA-256 of the output.
        replaces: SHA-256 of the file that was there before; empty if there was none.
    """

    recording: Identity
    model: Model
    output: str
    replaces: str = ""


def sha256(file: Path) -> str:
    """Of a file's content, hexadecimal; empty if there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def mark_path(output: Path) -> Path:
    """Where the mark of an output is."""
    return output.parent / _FOLDER / output.name


def read_mark(output: Path) -> Mark | None:
    """The mark of an output; None if there is none that can be read."""
    try:
        values: dict[str, Any] = json.loads(mark_path(output).read_bytes())
        return Mark(
            Identity(**values["recording"]),
            Model(**values["model"]),
            str(values["output"]),
            str(values["replaces"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_marked(output: Path, content: bytes, recording: Identity, model: Model) -> None:
    """Writes an output and its mark.

    Raises:
        OSError: one of them cannot be written; then the output is what it was.
    """
    mark = Mark(recording, model, hashlib.sha256(content).hexdigest(), sha256(output))
    values = json.dumps(dataclasses.asdict(mark), indent=1)
    write_whole(mark_path(output), f"{values}\n".encode())
    write_whole(output, content)
