"""Compiled programs that a killed process, a full disk or a power failure has cut.

JAX writes them in place. One that is cut it cannot read: it would warn of it at every start,
compile again, and leave it as it is.
"""

from __future__ import annotations

import contextlib
import pathlib
import zlib

_CHECKED = "checked"  # is as old as the last look at the folder


def remove_damaged(folder: pathlib.Path) -> int:
    """Removes the programs of JAX's persistent cache that are not whole; how many.

    Those that were there at the last look are not looked at again. What another process is writing
    just now may be removed; it is compiled again some day, as if it had not been there.

    Args:
        folder: of the cache, on a disk.

    Raises:
        OSError: the folder cannot be read or written.
    """
    stamp, removed = folder / _CHECKED, 0
    since = stamp.stat().st_mtime_ns if stamp.exists() else 0
    for file in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process looks too
            if file.stat().st_mtime_ns >= since and not _is_whole(file.read_bytes()):
                file.unlink()
                removed += 1
    stamp.touch()
    return removed


def _is_whole(content: bytes) -> bool:
    """Whether what JAX has compressed can be had back; of a way that is unknown here, it can."""
    if not any(content[:4096]):  # empty, or zeroed
        return False
    if content[0] & 0x0F == 8 and int.from_bytes(content[:2], "big") % 31 == 0:
        try:
            zlib.decompress(content)
        except zlib.error:
            return False
    elif content[:4] == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard  # which wrote it
        except ImportError:
            return True
        try:
            zstandard.ZstdDecompressor().decompress(content)
        except zstandard.ZstdError:
            return False
    return True
