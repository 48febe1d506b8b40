"""What containers tell of their length, where neither libsndfile nor FFmpeg passes it on."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

# Lengths that a writer leaves in a header that it cannot come back to.
_UNFINISHED = {0, 0xFFFFFFFF, *range(0x7FFFF000, 0x80000001)}
_XING_EXTRA = 4  # frames that it counts, and that a decoder drops as delay and padding, at most


def promised_share(log: str) -> float:
    """Of libsndfile's log: by what factor a length in the header goes beyond the file; 1 if none.

    libsndfile corrects such a length and notes both, in bytes.
    """
    share = 1.0
    for told, there in re.findall(r": (\d+) \(should be (\d+)\)", log):
        if int(told) not in _UNFINISHED and int(there):
            share = max(share, int(told) / int(there))
    return share


def xing_frames(file: BinaryIO) -> int:
    """MPEG frames of audio, at least, by the Xing header of an MP3; 0 without one."""
    file.seek(0)
    head = file.read(10)
    size = 0
    if head[:3] == b"ID3" and len(head) == 10:
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        size += 10
    file.seek(size)
    head = file.read(200)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 12 or not head[at + 7] & 1:
        return 0
    return max(0, int.from_bytes(head[at + 8 : at + 12], "big") - _XING_EXTRA)


def ogg_pages(file: BinaryIO) -> tuple[bool, bool, bool]:
    """Walks through the pages of an Ogg file.

    Returns:
        Whether each page stands right behind the one before, whether no stream begins behind
        another one, and whether the last page is whole and marked as such.
    """
    size = file.seek(0, os.SEEK_END)
    at = file.seek(0)
    single = True
    begun = ended = False
    while at < size:
        page = file.read(27)
        lengths = file.read(page[26]) if len(page) == 27 else b""
        if page[:4] != b"OggS"[: len(page)]:
            return False, single, False
        if len(page) < 27:
            return True, single, False
        first = bool(page[5] & 2)
        single = single and not (first and begun)
        begun = begun or not first
        at = file.seek(at + 27 + len(lengths) + sum(lengths))
        ended = bool(page[5] & 4) and at <= size
    return True, single, ended
