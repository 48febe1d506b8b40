"""Folders on a disk or in a bucket."""

from __future__ import annotations

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
