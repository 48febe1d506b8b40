"""Where recordings begin and end in a file, by its bytes: readers stop at the end of the first.

Files are joined by `cat` and by recorders, and a recorder that dies leaves a header whose length
falls short.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import soundfile

UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
# Lengths that a writer leaves in a header that it cannot come back to.
_UNFINISHED = {0, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, *range(0x7FFFF000, 0x80000001)}
_XING_EXTRA = 4  # frames that it counts, and that a decoder drops as delay and padding, at most
JUNK = 1024  # bytes behind a recording that nobody misses
_CHUNK = 1 << 20  # bytes that are searched at once
_MOST = 1000  # recordings in a file, and chunks in a recording: of more the rest is told as bytes


@dataclasses.dataclass(frozen=True)
class Part:
    """One recording in a file.

    Attributes:
        start, stop: bytes.
        kind: a key of `_MAGIC`; empty where only a reader can tell.
        promised: how much longer the header says that the samples are than the file has room for.
        patches: bytes to read in place of those at a position: a length that was never corrected.
        whole: of Ogg, each page stands right behind the one before.
        ended: of Ogg, the last page is there and marked as such.
    """

    start: int
    stop: int
    kind: str = ""
    patches: dict[int, bytes] = dataclasses.field(default_factory=dict)
    promised: float = 1.0
    whole: bool = True
    ended: bool = True


@dataclasses.dataclass(frozen=True)
class _Chunked:
    """A container of chunks: a name, a length, a body.

    Attributes:
        first: bytes before the first chunk.
        head: of a chunk, name and length.
        align: bytes of which a chunk is a multiple.
        data: the name of the chunk of samples.
        own: whether a length counts the head.
    """

    first: int
    head: struct.Struct
    align: int
    data: bytes
    own: bool = False

    def chunk(self, file: BinaryIO, at: int) -> tuple[bytes, int, int] | None:
        """Name, where the body begins, and its length; None where there is no chunk."""
        found = _bytes(file, at, self.head.size)
        if len(found) < self.head.size:
            return None
        name, length = self.head.unpack(found)
        if not re.fullmatch(rb"[ -~]{4}.*", name, re.DOTALL):
            return None
        return name, at + self.head.size, max(0, length - self.head.size * self.own)

    def behind(self, at: int, body: int, length: int) -> int:
        """Where the chunk that follows begins."""
        end = body + length
        return end + -(end - at) % self.align


_W64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of its chunks' identifiers, behind four letters
_CHUNKED = {
    "wav": _Chunked(12, struct.Struct("<4sI"), 2, b"data"),
    "rifx": _Chunked(12, struct.Struct(">4sI"), 2, b"data"),
    "aiff": _Chunked(12, struct.Struct(">4sI"), 2, b"SSND"),
    "caf": _Chunked(8, struct.Struct(">4sQ"), 1, b"data"),
    "w64": _Chunked(40, struct.Struct("<16sQ"), 8, b"data" + _W64, own=True),
}
# What to search a file for, how far behind its beginning that stands, and the beginning.
_SIGNS = {
    "wav": (b"WAVE", 8, rb"(?:RIFF|RF64|BW64)....WAVE[ -~]{4}"),
    "rifx": (b"RIFX", 0, rb"RIFX....WAVE[ -~]{4}"),
    "aiff": (b"FORM", 0, rb"FORM....AIF[FC][ -~]{4}"),
    "caf": (b"caff\0\x01", 0, rb"caff\x00\x01..desc"),
    "w64": (b"riff\x2e\x91\xcf\x11", 0, rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"),
    "au": (b".snd", 0, rb"\.snd\x00\x00......\x00\x00\x00[\x01-\x1b]\x00[\x00-\x0f]..\x00\x00\x00"),
    "flac": (b"fLaC", 0, rb"fLaC[\x00\x80]\x00\x00\x22"),
    "ogg": (b"OggS\0", 0, rb"OggS\x00[\x00-\x07]"),
    "mp4": (b"ftyp", 4, rb"\x00\x00[\x00-\x07].ftyp[ -~]{4}"),
    "matroska": (
        b"\x1aE\xdf\xa3",
        0,
        rb"\x1aE\xdf\xa3[\x01\x80-\xff].{0,7}?\x42(?:[\x86\xf7]\x81\x01|\x82.[wm])",
    ),
    "mpeg": (
        b"ID3",
        0,
        rb"ID3[\x02-\x04]\x00[\x00\x10\x20\x40\x80\xc0][\x00-\x7f]{4}"
        rb"|\xff[\xe2-\xff].{7,40}?(?:Xing|Info)",
    ),
}
_MAGIC = {
    kind: (literal, offset, re.compile(sign, re.DOTALL))
    for kind, (literal, offset, sign) in _SIGNS.items()
}
_SYNC = rb"\xff[\xe2-\xff]"  # of MPEG audio; PCM may hold it


def parts(file: BinaryIO) -> Iterator[Part]:
    """The recordings in a file, in order; what is no recording has the kind ``"unknown"``.

    Padding and the tags that players append are left out.
    """
    size = file.seek(0, os.SEEK_END)
    at = _behind_tags(file, 0, size) if _bytes(file, 0, 3) == b"ID3" else 0
    kind = "mpeg" if re.match(_SYNC, _bytes(file, at, 2)) else _kind(file, at)
    if not kind:
        yield Part(0, size)
        return
    for count in itertools.count():
        if at >= size:
            return
        if count:  # MPEG audio goes on at any frame
            kind = _kind(file, at) or (kind if kind == "mpeg" else "")
        if count > _MOST:
            kind = ""
        if kind in _CHUNKED:
            part = _chunked(file, at, size, kind)
        elif kind in _OTHERS:
            part = _OTHERS[kind](file, at, size, kind)
        else:
            if size - at < JUNK:
                return
            part = Part(at, size, "unknown")
        yield part
        at = _behind_tags(file, part.stop, size)


def _kind(file: BinaryIO, at: int) -> str:
    head = _bytes(file, at, 64)
    return next((kind for kind, (_, _, sign) in _MAGIC.items() if sign.match(head)), "")


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(min(at, 2**40))  # a damaged header may say anything
    return file.read(count)


def _next(file: BinaryIO, at: int, size: int, kind: str) -> int:
    """Where the next recording of a kind begins, or `size`."""
    literal, offset, sign = _MAGIC[kind]
    while at < size:
        piece = _bytes(file, at, _CHUNK + 64)
        place = piece.find(literal)
        while 0 <= place < _CHUNK:
            begin = at + place - offset
            if sign.match(_bytes(file, max(begin, 0), 64)):
                return begin
            place = piece.find(literal, place + 1)
        at += _CHUNK
    return size


def _until_next(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    """Of containers that do not tell where they end."""
    return Part(at, _next(file, at + 8, size, kind), kind)


def _behind_tags(file: BinaryIO, at: int, size: int) -> int:
    """Skips zeros and the tags ID3, APE and Lyrics3."""
    while at < size:
        head = _bytes(file, at, 32)
        if head.startswith(b"ID3") and len(head) > 10:
            at += 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        elif head.startswith((b"TAG", b"LYRICSBEGIN")):
            at = size if size - at < 128 << 10 else at + 128
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            at += 32 + int.from_bytes(head[12:16], "little")
        elif head[:1] == b"\0":
            piece = _bytes(file, at, _CHUNK)
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            if zeros < len(piece) and _MAGIC["mp4"][2].match(piece, max(zeros - 3, 0)):
                return at + max(zeros - 3, 0)  # the zeros are of its length
            at += zeros
        else:
            break
    return min(at, size)


def _chunked(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    form = _CHUNKED[kind]
    wide, place = 0, at + form.first
    for _ in range(_MOST):
        chunk = form.chunk(file, place)
        if chunk is None:
            return Part(at, size, kind)  # nothing of it can be believed: readers will say
        name, body, length = chunk
        if name == form.data:
            break
        if name == b"ds64":  # RF64: the lengths that 32 bits cannot hold
            wide = body + 8
        place = form.behind(place, body, length)
    else:
        return Part(at, size, kind)
    count = form.head.size - len(name)
    length_at = body - count
    if wide and length == 0xFFFFFFFF:
        length_at, count = wide, 8
        length = int.from_bytes(_bytes(file, wide, 8), "little")
    unfinished = length in _UNFINISHED
    stop, chunks = _chunks_end(file, form, place, body, length, size)
    if (body + length <= size and not unfinished) or (chunks and stop >= size):
        rest = _behind_tags(file, stop, size)
        if rest >= size or _kind(file, rest):
            end = body + length if kind == "w64" else stop  # libsndfile reads such to their end
            return Part(at, end if rest < size or kind == "w64" else size, kind)
    else:
        chunks = 0
    # What the header says is wrong, or something is behind it.
    following = _next(file, body, size, kind)
    if following == size and not unfinished and (chunks or size - JUNK < stop < size):
        return Part(at, stop, kind)
    patches, promised = {}, 1.0
    if unfinished or body + length <= following:
        right = min(following - body + form.head.size * form.own, 256**count - 1)
        order: Literal["little", "big"] = "little" if kind in ("wav", "w64") else "big"
        patches[length_at] = right.to_bytes(count, order)
    elif following > body:
        promised = length / (following - body)
    return Part(at, following, kind, patches, promised)


def _chunks_end(
    file: BinaryIO, form: _Chunked, place: int, body: int, length: int, size: int
) -> tuple[int, int]:
    """Where the chunks behind the samples end, and how many there are."""
    aligned = form.behind(place, body, length)
    for end in (aligned, body + length):  # not every writer aligns
        count, at = 0, end
        while count < _MOST and (chunk := form.chunk(file, at)) and not _kind(file, at):
            if chunk[1] + chunk[2] > size and not chunk[0].startswith((b"LIST", b"id3", b"ID3 ")):
                break
            at, count = min(form.behind(at, *chunk[1:]), size), count + 1
        if count:
            return at, count
    return min(aligned if _kind(file, aligned) else body + length, size), 0


def _au(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    offset, length = struct.unpack(">II", _bytes(file, at + 4, 8))
    body, unfinished = at + offset, length in _UNFINISHED
    stop = body + length
    if not unfinished and stop <= size:
        rest = _behind_tags(file, stop, size)
        if rest >= size or _kind(file, rest):
            return Part(at, stop, kind)
    following = _next(file, body, size, kind)
    if not unfinished and following == size and size - JUNK < stop < size:
        return Part(at, stop, kind)
    if not unfinished and stop > following > body:
        return Part(at, following, kind, promised=length / (following - body))
    return Part(at, following, kind, {at + 8: b"\xff" * 4})


def _mp4(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    last, place, media = at, at, False
    while place < size:
        head = _bytes(file, place, 16)
        if media and _kind(file, place):
            break
        if len(head) < 8 or not re.fullmatch(rb"[ -~\xa9]{4}", head[4:8]):
            return Part(at, _next(file, last + 8, size, kind), kind)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        media = media or name in (b"moov", b"mdat", b"moof")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or place + length > size:  # to the end, or cut off
            return Part(at, _next(file, place + 8, size, kind) if length else size, kind)
        last, place = place, place + length
    return Part(at, place, kind)


def _ogg(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    """To where a stream begins behind another one."""
    start, last, whole, begun, ended = at, at, True, False, False
    while at < size:
        page = _bytes(file, at, 27)
        lengths = file.read(page[26]) if len(page) == 27 else b""
        if ended and _kind(file, at) not in ("ogg", ""):
            break
        if page[:4] != b"OggS"[: len(page)]:  # the page before was cut off, or something follows
            whole, at = False, _next(file, last + 27, size, kind)
            continue
        if len(page) < 27:
            return Part(start, size, kind, whole=whole, ended=False)
        first = bool(page[5] & 2)
        if first and begun:
            return Part(start, at, kind, whole=whole, ended=ended)
        begun = begun or not first
        last, at = at, at + 27 + len(lengths) + sum(lengths)
        ended = bool(page[5] & 4) and at <= size
    return Part(start, min(at, size), kind, whole=whole, ended=ended)


def _flac(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    """To the next: nothing in it tells where it ends. Its number of samples may fall short."""
    part = _until_next(file, at, size, kind)
    if _ends_at_last_sample(file, part):
        return part
    head = _bytes(file, at + 21, 1)  # the number of samples: 36 bits, 0 where unknown
    unknown = bytes([head[0] & 0xF0]) if head else b""
    return Part(at, part.stop, kind, {at + 21: unknown + bytes(4)})


def _ends_at_last_sample(file: BinaryIO, part: Part) -> bool:
    """Whether all bytes were used when the last of the samples that the header counts is read."""
    window = Window(file, part)
    try:
        with soundfile.SoundFile(window) as opened:
            if not 0 < opened.frames < UNKNOWN_FRAMES:
                return False
            opened.seek(opened.frames - 1)
            return len(opened.read(1)) == 1 and window.tell() == part.stop - part.start
    except (soundfile.LibsndfileError, MemoryError):
        return True  # it is cut off, or damaged


def _mpeg(file: BinaryIO, at: int, size: int, kind: str) -> Part:
    """To a tag, or to what is no MPEG audio: of such FFmpeg reads several, one behind another.

    In pictures of tags it finds frames of noise.
    """
    return Part(at, min(_next(file, at, size, other) for other in _MAGIC), kind)


_OTHERS = {
    "au": _au,
    "flac": _flac,
    "ogg": _ogg,
    "mp4": _mp4,
    "matroska": _until_next,
    "mpeg": _mpeg,
}


class Window(io.RawIOBase):
    """A part of a file, as if it were the whole."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file, self._part = file, part
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = self._part.stop - self._part.start
        self._at = max(0, offset + (0, self._at, size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        begin = self._part.start + self._at
        content = bytearray(
            _bytes(self._file, begin, max(0, min(len(buffer), self._part.stop - begin)))
        )
        for at, patch in self._part.patches.items():
            for i, byte in enumerate(patch, at - begin):
                if 0 <= i < len(content):
                    content[i] = byte
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def xing_frames(file: BinaryIO, start: int) -> int:
    """MPEG frames of audio, at least, by the Xing header of an MP3; 0 without one."""
    size = file.seek(0, os.SEEK_END)
    head = _bytes(file, _behind_tags(file, start, size), 200)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 12 or not head[at + 7] & 1:
        return 0
    return max(0, int.from_bytes(head[at + 8 : at + 12], "big") - _XING_EXTRA)
