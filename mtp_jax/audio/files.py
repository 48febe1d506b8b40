"""Audio files to blocks of float samples, to their very end.

A header's number of frames is believed where it is exact or its absence shows: libsndfile reads
WAV, FLAC, AIFF, Ogg of a single stream and the like. All else, and what libsndfile cannot read,
is FFmpeg's (PyAV): MP3, MP4, WebM and more, whose length is known only once they are decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

import av
import numpy as np
import soundfile

from mtp_jax.audio.errors import AudioError
from mtp_jax.audio.headers import ogg_pages, promised_share, xing_frames
from mtp_jax.audio.waveform import BLOCK_SAMPLES

RATES = (1000, 1_000_000)  # Hz; a header that says otherwise is damaged
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
_STEP = 4096  # frames; a step that cannot be decoded is lost as a whole
_MISSED = 0.1  # s; that much less than promised is padding or rounding
# No playlist or script: those name other files, and addresses.
_DEMUXERS = (
    "mp3,ogg,mov,matroska,webm,aac,loas,asf,amr,amrnb,amrwb,wav,w64,flac,aiff,au,caf,avi,mpeg,"
    "mpegts"
)
_NO_END = "misses pages or its last one, as if cut off; {:.1f} s were read"
_EXACT = ("mov", "matroska", "asf")  # demuxers whose length is written, not estimated


class Recording(Protocol):
    """An opened file.

    Attributes:
        rate: in Hz.
        frames: how many samples a channel has; None where only decoding tells.
    """

    rate: int
    frames: int | None

    def steps(self) -> Iterator[np.ndarray]:
        """float32[T, channels] until the end, or until it is damaged."""

    def seek(self, frame: int) -> None:
        """`steps` start there."""

    def missing(self, read: int) -> str:
        """What was promised and did not come when `steps` ended after frame `read`, or ''."""


def blocks(
    file: Recording, start: int, count: int | None, name: str, warn: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """Reads a part of a recording.

    Args:
        file: the recording.
        start: the first frame.
        count: frames, or None to the end.
        name: of the recording, for messages.
        warn: is told if the audio ends before it should.

    Yields:
        float32[T, channels], none of them empty, of `BLOCK_SAMPLES` but for the last.
    """
    end = None if count is None else start + count
    file.seek(start)
    gathered: list[np.ndarray] = []
    at, held = start, 0
    for step in file.steps():
        step = step[: None if end is None else end - at]
        at += len(step)
        gathered.append(step)
        held += len(step)
        size = max(1, BLOCK_SAMPLES // step.shape[1])
        while held >= size:
            table = np.concatenate(gathered)
            yield table[:size]
            gathered, held = [table[size:]], held - size
        if at == end:
            break
    if held:
        yield np.concatenate(gathered)
    if at > start and at != end and (reason := file.missing(at)):
        warn(f"{name} {reason}: replace it, or use what there is")


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[Recording]:
    """Opens a file, or the contents of one.

    Raises:
        AudioError: the file is missing, not audio, or empty.
    """
    with contextlib.ExitStack() as stack:
        yield _open(source, name, stack)


def _open(
    source: str | os.PathLike[str] | bytes, name: str, stack: contextlib.ExitStack
) -> Recording:
    if isinstance(source, bytes):
        stream: BinaryIO = io.BytesIO(source)
        first: BinaryIO | bytes = io.BytesIO(source)
    else:
        stream = stack.enter_context(_stream(source))
        first = os.fsencode(source)  # any name, also one that is not UTF-8
    tried: soundfile.SoundFile | None = None
    with contextlib.suppress(soundfile.LibsndfileError, TypeError):  # TypeError: headerless .raw
        tried = stack.enter_context(soundfile.SoundFile(first))
    file: Recording
    known, ended = tried is not None and 0 < tried.frames < _UNKNOWN_FRAMES, True
    if tried is not None and tried.format == "OGG":  # it reads the first of several streams
        whole, single, ended = ogg_pages(stream)
        known = known and whole and single
        stream.seek(0)
    if tried is not None and known and tried.format not in ("MP3", "MPEG"):
        file = _Libsndfile(tried, ended)
    else:
        try:
            container = av.open(
                stream, "r", options={"format_whitelist": _DEMUXERS}, metadata_errors="replace"
            )
            stack.enter_context(container)
        except (av.FFmpegError, ValueError, OSError, MemoryError):
            if tried is not None:
                raise AudioError(_empty(name)) from None
            raise AudioError(
                f"{name} is damaged or in a format that neither libsndfile nor FFmpeg reads:"
                " convert it to WAV or FLAC, or leave it out"
            ) from None
        if not container.streams.audio:
            raise AudioError(f"{name} holds no audio, only other streams: leave it out")
        if container.streams.audio[0].codec_context is None:  # a codec that FFmpeg has no name for
            raise AudioError(
                f"{name} holds audio of an unknown kind: convert it to WAV or FLAC, or leave it out"
            )
        file = _FFmpeg(container, stream)
        if file.rate == 0:
            raise AudioError(_empty(name))
    if not RATES[0] <= file.rate <= RATES[1]:
        raise AudioError(f"{name} says that it has {file.rate} samples a second: make it again")
    return file


def _empty(name: str) -> str:
    return f"{name} holds no samples: replace it or leave it out"


def _stream(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        status = os.stat(path)
        if stat.S_ISFIFO(status.st_mode):  # to open one may wait for ever
            raise AudioError(f"{path} is a pipe: write what comes out of it to a file")
        stream = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({error.strerror}): correct the path") from None
    if not status.st_size:
        stream.close()
        raise AudioError(f"{path} is an empty file: replace it or leave it out")
    return stream


class _Libsndfile:
    """A file whose header tells its length."""

    def __init__(self, file: soundfile.SoundFile, ended: bool) -> None:
        self._file, self._ended = file, ended
        self._reached = True
        self.rate = int(file.samplerate)
        self.frames: int | None = int(file.frames)

    def seek(self, frame: int) -> None:
        try:
            self._file.seek(frame)
        except soundfile.LibsndfileError:  # beyond the end, or damage on the way
            self._reached = False

    def steps(self) -> Iterator[np.ndarray]:
        while self._reached:
            try:
                step = self._file.read(_STEP, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, MemoryError):
                return
            if not len(step):
                return
            yield step

    def missing(self, read: int) -> str:
        assert self.frames is not None
        promised = self.frames * promised_share(self._file.extra_info)
        missed = (promised - read) / self.rate
        return _cut_off(read / self.rate, missed) or (
            "" if self._ended else _NO_END.format(read / self.rate)
        )


class _FFmpeg:
    """A file whose length is known once it is decoded."""

    def __init__(self, container: av.container.InputContainer, stream: BinaryIO) -> None:
        self._container, self._bytes = container, stream
        self._stream = container.streams.audio[0]
        self.rate = int(self._stream.codec_context.sample_rate or 0)
        self.frames: int | None = None
        self._skip = 0
        self._damaged = 0.0  # seconds
        self._frame_size = 0

    def seek(self, frame: int) -> None:
        self._skip = frame  # decoded, as a jump into such a file may miss its aim

    def steps(self) -> Iterator[np.ndarray]:
        skip = self._skip
        for step in self._all():
            if skip < len(step):
                yield step[skip:]
            skip = max(0, skip - len(step))

    def _all(self) -> Iterator[np.ndarray]:
        mixed: tuple[object, ...] = ()
        resampler: av.AudioResampler | None = None
        layout = None
        try:
            for frame in self._decoded():
                # A stream behind another one in the same file may be of another kind.
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                if kind != mixed:
                    yield from _arrays(resampler.resample(None) if resampler else [])
                    layout = layout or frame.layout.name
                    resampler = av.AudioResampler("fltp", layout, self.rate)
                    mixed = kind
                assert resampler is not None
                self._frame_size = max(self._frame_size, frame.samples)
                frame.pts = None
                yield from _arrays(resampler.resample(frame))
            yield from _arrays(resampler.resample(None) if resampler else [])
        except (av.FFmpegError, ValueError, MemoryError, OSError):
            self._damaged += _MISSED

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                if packet.duration and packet.time_base:
                    self._damaged += float(packet.duration * packet.time_base)

    def missing(self, read: int) -> str:
        seconds = read / self.rate
        missed = max(self._promised() - seconds, self._damaged)
        reason = _cut_off(seconds, missed)
        if not reason and self._container.format.name == "ogg":
            whole, _, ended = ogg_pages(self._bytes)
            reason = "" if whole and ended else _NO_END.format(seconds)
        return reason

    def _promised(self) -> float:
        """Seconds by the header, or 0 where it holds none."""
        stream, container = self._stream, self._container
        kind = container.format.name
        if kind == "mp3":
            return xing_frames(self._bytes) * self._frame_size / self.rate
        if kind.startswith(_EXACT):
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            if container.duration and len(container.streams) == 1:
                return float(container.duration / av.time_base)
        return 0.0


def _arrays(frames: Iterable[av.AudioFrame]) -> Iterator[np.ndarray]:
    """float32[T, channels] of planar float frames."""
    for frame in frames:
        if frame.samples:
            yield frame.to_ndarray().T


def _cut_off(seconds: float, missed: float) -> str:
    if missed <= _MISSED:
        return ""
    return f"is damaged or cut off: {missed:.1f} s are missing, {seconds:.1f} s were read"
