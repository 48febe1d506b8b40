"""Folders on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import cast


def to_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """`path` as an object that reads and writes it: ``gs://BUCKET/FOLDER``, or a local one.

    A bucket needs ``pip install gcsfs``.
    """
    name = os.fspath(path)
    if "://" in name:
        from etils import epath  # imported late: only buckets need it

        return cast(pathlib.Path, epath.Path(name))
    return pathlib.Path(name).expanduser()


def absolute(path: pathlib.Path) -> pathlib.Path:
    """`path` from the root; what lies in a bucket already is."""
    return path if "://" in os.fspath(path) else path.absolute()


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, and its folder, so that it holds either all of `content` or what it did.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):  # what lies in a bucket is written whole or not at all
        path.write_bytes(content)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
