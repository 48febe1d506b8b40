"""Folders on a disk or in a bucket: whether they can be written, and files written whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from typing import cast

PARTIAL = ".partial-*"  # pattern of the names of files that are not whole yet


class OutputError(ValueError):
    """A place that cannot be written; the message says which, why, and what to do."""


def to_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """`path` as an object that reads and writes it: ``gs://BUCKET/FOLDER``, or a local one.

    A bucket needs ``pip install gcsfs``.
    """
    name = os.fspath(path)
    if "://" in name:
        from etils import epath  # imported late: only buckets need it

        return cast(pathlib.Path, epath.Path(name))
    return pathlib.Path(os.path.expanduser(name))  # noqa: PTH111  # leaves unknown users alone


def in_bucket(path: pathlib.Path) -> bool:
    """Whether `path` lies in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: pathlib.Path) -> pathlib.Path:
    """`path` from the root; what lies in a bucket already is."""
    return path if in_bucket(path) else path.absolute()


def partial_name() -> str:
    """A new name for a file that is not whole yet, to be written beside the one that it becomes.

    It is short whatever the other is called, as file systems limit the length of names.
    """
    return PARTIAL.replace("*", secrets.token_hex(6))


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, and its folder, so that it holds either all of `content` or what it did.

    Raises:
        OSError: it cannot be written; names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_bucket(path):  # what lies in a bucket is written whole or not at all
        path.write_bytes(content)
        return
    partial = path.with_name(partial_name())
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the new name without content
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def sync_folder(folder: pathlib.Path) -> None:
    """Returns once all that is in a folder is on the disk, even if the power fails then.

    In a bucket it is. A folder that is not there, or no more, has nothing to write.

    Raises:
        OSError: it cannot be written.
    """
    if in_bucket(folder):
        return
    for each in (*pathlib.Path(folder).rglob("*"), folder):
        try:
            opened = os.open(each, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def check_writable(folder: pathlib.Path, flag: str = "") -> None:
    """Finds out whether files can be written to `folder`, which need not exist, and makes nothing.

    Commands call this before they begin hours of work.

    Args:
        folder: on a disk or in a bucket.
        flag: that named it, for the message.

    Raises:
        OutputError: they cannot.
    """
    remedy = f"choose another --{flag}" if flag else "choose another folder"
    try:
        if in_bucket(folder):
            probe = folder / partial_name()
            probe.write_bytes(b"")
            probe.unlink()
            return
        nearest = _nearest_existing(folder)
        probe = nearest / partial_name()
        if nearest == folder:
            probe.touch()
            probe.unlink()
        else:
            probe.mkdir()
            probe.rmdir()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): {remedy}") from None
    except Exception as error:
        if not in_bucket(folder):  # of a bucket, whatever its client raises
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"{folder} cannot be written ({said}): {remedy}") from None


def check_writable_file(file: pathlib.Path, flag: str = "") -> None:
    """As `check_writable`, of one file; it may exist.

    Raises:
        OutputError: it cannot be written.
    """
    if file.is_dir():
        remedy = f"give --{flag} the name of a file" if flag else "give the name of a file"
        raise OutputError(f"{file} is a folder: {remedy}")
    check_writable(file.parent, flag)


def _nearest_existing(folder: pathlib.Path) -> pathlib.Path:
    """`folder`, or the nearest folder above it that exists.

    Raises:
        OSError: there can be no such folder: a file is in its place, or its name is too long.
    """
    for each in (folder, *folder.parents):
        try:
            each.lstat()
        except FileNotFoundError:
            continue
        if each.is_dir():
            return each
        raise NotADirectoryError(None, "Not a directory")
    return folder
