"""Files of models that strangers made, read within bounds: none waits, grows or leads elsewhere.

Errors are of the kinds that a damaged file gives, `OSError` and `ValueError`, so that whoever reads
one names it and says what to do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_jax.paths import in_bucket

if TYPE_CHECKING:
    import gguf

# Of files that are read whole. The largest tokenizer.json of the Hub has some 40 MB.
MOST_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """The content of a file, which is a regular one and has at most `MOST_BYTES`.

    Raises:
        OSError: it cannot be read, or is another one.
    """
    if in_bucket(path):  # where there are no devices; whoever names a bucket knows what is in it
        return path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        if found.st_size > MOST_BYTES:
            said = f"it has {found.st_size} bytes, more than the {MOST_BYTES} that are read"
            raise OSError(errno.EINVAL, said, os.fspath(path))
        return file.read(MOST_BYTES)


def parse_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path))


def check_links(folder: Path) -> None:
    """Refuses a folder of a model with files that are links out of it, as to a device or a secret.

    In a cache of huggingface_hub files are links to those of its ``blobs``. Links to folders are
    left alone: a workdir may have its checkpoints on another disk.

    Raises:
        ValueError: one is; names it.
    """
    if in_bucket(folder) or not folder.is_dir():
        return
    home = folder.resolve()
    inside = [home]
    if home.parent.name == "snapshots":
        inside.append(home.parent.parent / "blobs")
    for entry in sorted(folder.iterdir()):
        if not entry.is_symlink() or entry.is_dir():
            continue
        try:
            target = entry.resolve()
        except (OSError, RuntimeError):  # a loop: whoever reads it says so
            continue
        if not any(target.is_relative_to(each) for each in inside):
            raise ValueError(
                f"{entry} is a link out of the folder (to {target}): copy the file into it, if you"
                " trust who made the link"
            )


def open_gguf(path: Path) -> gguf.GGUFReader:
    """A GGUF file; none of its lists is longer than the file.

    Raises:
        Exception: it is damaged; the package raises errors of many kinds.
    """
    import gguf
    import numpy as np

    class Bounded(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY:  # its items' type (4 bytes), and how many
                count = int(self._get(orig_offs + 4, np.uint64)[0])
                if count > len(self.data):
                    raise ValueError(f"a list of {count} items in {len(self.data)} bytes")
            return super()._get_field_parts(orig_offs, raw_type)

    return Bounded(path)
