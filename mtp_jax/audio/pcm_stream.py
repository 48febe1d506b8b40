"""A stream of PCM as it comes, of a microphone or of a program: no end of it needs to be there."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from mtp_jax.audio.errors import AudioError
from mtp_jax.audio.waveform import FULL_SCALE, waveform_blocks

RAW_RATE = 16_000  # Hz of a stream without a header
_PCM, _EXTENSIBLE = 1, 0xFFFE
_MOST = 1 << 16  # bytes that are read at once
_HEADER = 1 << 20  # bytes within which a header's samples must begin
_WHAT = "send 16-bit PCM, raw (16 kHz, one channel) or as WAV"


def pcm_blocks(stream: BinaryIO, sample_rate: int, name: str = "stdin") -> Iterator[np.ndarray]:
    """Blocks of a stream, each as soon as it is there.

    A stream that begins with RIFF is WAV with 16-bit samples, whose header says rate and channels;
    its length is not asked for, as a program that writes into a pipe knows none. Any other is raw:
    little-endian samples of 16 bits, one channel, `RAW_RATE`.

    Args:
        stream: read to its end.
        sample_rate: Hz of the result.
        name: of it, for messages.

    Yields:
        int16[T], none of them empty.

    Raises:
        AudioError: the header is not one of such samples.
    """
    reader = _Reader(stream)
    rate, channels = RAW_RATE, 1
    if reader.ahead(4) in (b"RIFF", b"RIFX", b"RF64"):
        rate, channels = _header(reader, name)
    blocks = _samples(reader, channels)
    if (rate, channels) == (sample_rate, 1):
        yield from (block[:, 0] for block in blocks)
        return
    floats = (block.astype(np.float32) / FULL_SCALE for block in blocks)
    yield from waveform_blocks(floats, name, rate, sample_rate)


class _Reader:
    """Bytes of a stream, some of which may be looked at before they are taken."""

    def __init__(self, stream: BinaryIO) -> None:
        # `read` of a buffered stream waits until all that it was asked for is there.
        self._read = getattr(stream, "read1", stream.read)
        self._held = b""

    def ahead(self, count: int) -> bytes:
        """The next bytes; fewer where the stream ends."""
        while len(self._held) < count and (more := self._read(_MOST)):
            self._held += more
        return self._held[:count]

    def take(self, count: int) -> bytes:
        """The same, which are then behind."""
        taken = self.ahead(count)
        self._held = self._held[len(taken) :]
        return taken

    def some(self) -> bytes:
        """What there is; empty at the end."""
        held, self._held = self._held, b""
        return held or self._read(_MOST)


def _header(reader: _Reader, name: str) -> tuple[int, int]:
    """Rate and channels; the samples follow."""
    order = ">" if reader.take(12)[:4] == b"RIFX" else "<"
    found: tuple[int, int] | None = None
    taken = 0
    while len(head := reader.take(8)) == 8 and taken < _HEADER:
        kind, size = head[:4], struct.unpack(f"{order}I", head[4:])[0]
        if kind == b"data":
            if found is None or order == ">":
                break
            return found
        body = reader.take(min(size + size % 2, _HEADER))
        taken += len(body)
        if kind == b"fmt " and len(body) >= 16:
            form, channels, rate, _, _, bits = struct.unpack(f"{order}HHIIHH", body[:16])
            if form not in (_PCM, _EXTENSIBLE) or bits != 16 or not 1 <= channels <= 32:
                raise AudioError(
                    f"{name} is WAV of other samples (format {form}, {bits} bits,"
                    f" {channels} channels): {_WHAT}"
                )
            if not 1000 <= rate <= 768_000:
                raise AudioError(f"{name} is WAV at {rate} Hz, which no microphone has: {_WHAT}")
            found = rate, channels
    raise AudioError(f"{name} begins as WAV and has no samples that can be read: {_WHAT}")


def _samples(reader: _Reader, channels: int) -> Iterator[np.ndarray]:
    """int16[T, channels]; what is no whole frame at the end is left out."""
    left, size = b"", 2 * channels
    while some := reader.some():
        left += some
        whole = len(left) // size * size
        if whole:
            yield np.frombuffer(left[:whole], "<i2").astype(np.int16).reshape(-1, channels)
        left = left[whole:]
