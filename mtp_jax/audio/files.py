"""Audio files to blocks of float samples, to their very end.

A header's number of frames is believed where it is exact or its absence shows: libsndfile reads
WAV, FLAC, AIFF, Ogg and the like. All else, and what libsndfile cannot read, is FFmpeg's (PyAV):
MP3, MP4, WebM and more, whose length is known only once they are decoded. A file may hold several
recordings, one behind another (`containers`): each is opened by itself.
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

from mtp_jax.audio.containers import (
    JUNK,
    UNKNOWN_FRAMES,
    Part,
    Window,
    parts,
    xing_frames,
)
from mtp_jax.audio.errors import AudioError
from mtp_jax.audio.waveform import BLOCK_SAMPLES

RATES = (1000, 1_000_000)  # Hz; a header that says otherwise is damaged
_STEP = 4096  # frames; a step that cannot be decoded is lost as a whole
_MISSED = 0.1  # s; that much less than promised is padding or rounding
# No playlist or script: those name other files, and addresses.
DEMUXERS = (
    "mp3,ogg,mov,matroska,webm,aac,loas,ac3,eac3,asf,amr,amrnb,amrwb,wav,w64,flac,aiff,au,caf,"
    "avi,flv,mpeg,mpegts,rm,ape,tta,wv,mpc,mpc8,dsf"
)
_NO_END = "misses pages or its last one, as if cut off; {:.1f} s were read"
_ENCRYPTED = ("drms", "enca")  # sample descriptions of MP4
_FFMPEG_ONLY = ("mpeg", "mp4", "matroska")
_EXACT = ("mov", "matroska", "asf")  # demuxers whose length is written, not estimated


class Recording(Protocol):
    """An opened file.

    Attributes:
        rate: in Hz.
        frames: how many samples a channel has; None where only decoding tells, until it is done.
        stream: number of the stream in its container that is read; `others` hold audio, too.
    """

    rate: int
    frames: int | None
    stream: int
    others: int

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


class File:
    """A file that is open.

    Attributes:
        parts: the recordings in it, one behind another.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, stream: BinaryIO, name: str) -> None:
        self._source, self._stream, self._name = source, stream, name
        self.parts = list(parts(stream))

    def recordings(self, warn: Callable[[str], None]) -> Iterator[Recording]:
        """Each of them, open until the next is asked for.

        Args:
            warn: is told of bytes between or behind them that cannot be read.

        Raises:
            AudioError: none of them is audio.
        """
        failed: list[tuple[Part, AudioError]] = []
        for part in self.parts:
            with contextlib.ExitStack() as stack:
                try:
                    recording = self._open(part, stack)
                except AudioError as error:
                    failed.append((part, error))
                    continue
                if recording.others:
                    warn(
                        f"{self._name} holds {1 + recording.others} audio streams, of which only"
                        f" stream {recording.stream} is read: extract the others to read them"
                    )
                yield recording
        if len(failed) == len(self.parts):
            raise failed[0][1]
        for part, _ in failed:
            if part.stop - part.start >= JUNK:
                warn(
                    f"{self._name} holds {part.stop - part.start} bytes, from byte {part.start},"
                    " that are no audio that can be read: split it there, or use what there is"
                )

    def _open(self, part: Part, stack: contextlib.ExitStack) -> Recording:
        if part.kind == "unknown":  # FFmpeg would find something in noise, too
            raise AudioError(_empty(self._name))
        tried = None
        if part.kind not in _FFMPEG_ONLY:
            # TypeError: headerless .raw
            with contextlib.suppress(soundfile.LibsndfileError, TypeError):
                tried = stack.enter_context(soundfile.SoundFile(self._named(part)))
        file: Recording
        known = tried is not None and 0 < tried.frames < UNKNOWN_FRAMES and part.whole
        # Of MPEG audio libsndfile estimates the length, in WAV as well.
        if tried is not None and known and not tried.subtype.startswith("MPEG"):
            file = _Libsndfile(tried, part)
        else:
            file = self._ffmpeg(part, stack, recognised=tried is not None)
        if not RATES[0] <= file.rate <= RATES[1]:
            raise AudioError(
                f"{self._name} says that it has {file.rate} samples per second: make it again"
            )
        return file

    def _ffmpeg(self, part: Part, stack: contextlib.ExitStack, recognised: bool) -> Recording:
        name = self._name
        try:
            container = av.open(
                self._window(part),
                "r",
                options={"format_whitelist": DEMUXERS},
                metadata_errors="replace",
            )
            stack.enter_context(container)
        except (av.FFmpegError, ValueError, OSError, MemoryError):
            if recognised:
                raise AudioError(_empty(name)) from None
            raise AudioError(
                f"{name} is damaged or in a format that neither libsndfile nor FFmpeg reads:"
                " convert it to WAV or FLAC, or leave it out"
            ) from None
        # One that FFmpeg has no name for has no codec.
        known = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if not known:
            kind = "audio of an unknown kind: convert it to WAV or FLAC, or leave it out"
            nothing = "no audio, only other streams: leave it out"
            raise AudioError(f"{name} holds {kind if container.streams.audio else nothing}")
        best = container.streams.best("audio")
        chosen = next((stream for stream in known if stream is best), known[0])
        if part.kind == "mp4" and _tag(chosen) in _ENCRYPTED:
            raise AudioError(
                f"{name} is encrypted: get it without copy protection, or leave it out"
            )
        file = _FFmpeg(container, chosen, part, xing_frames(self._stream, part.start))
        if file.rate == 0:
            raise AudioError(_empty(name))
        return file

    def _window(self, part: Part) -> BinaryIO:
        """To read a part from. FFmpeg may seek anywhere in it, which a file would not take."""
        return io.BufferedReader(Window(self._stream, part), 1 << 16)

    def _named(self, part: Part) -> BinaryIO | bytes:
        """As `_window`, or the name of the file where it will do, which is faster."""
        size = self._stream.seek(0, os.SEEK_END)
        if isinstance(self._source, bytes) or part.start or part.stop < size or part.patches:
            return self._window(part)
        return os.fsencode(self._source)  # any name, also one that is not UTF-8


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[File]:
    """Opens a file, or the contents of one.

    Raises:
        AudioError: it is missing or empty.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else _stream(source) as stream:
        yield File(source, stream, name)


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

    def __init__(self, file: soundfile.SoundFile, part: Part) -> None:
        self._file, self._part = file, part
        self.stream = self.others = 0
        self._reached, self._skip = True, 0
        self.rate = int(file.samplerate)
        self.frames: int | None = int(file.frames)

    def seek(self, frame: int) -> None:
        if not self._file.seekable():  # GSM 6.10 and others cannot even go to their beginning
            self._skip = frame
            return
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
            if self._skip < len(step):
                yield step[self._skip :]
            self._skip = max(0, self._skip - len(step))

    def missing(self, read: int) -> str:
        assert self.frames is not None
        promised = max(float(self.frames), read * self._part.promised)
        missed = (promised - read) / self.rate
        return _cut_off(read / self.rate, missed) or (
            "" if self._part.ended else _NO_END.format(read / self.rate)
        )


class _FFmpeg:
    """A file whose length is known once it is decoded."""

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        part: Part,
        mpeg_frames: int,
    ) -> None:
        self._container, self._stream = container, stream
        self.stream, self.others = stream.index, len(container.streams.audio) - 1
        self._part, self._mpeg_frames = part, mpeg_frames
        self.rate = int(self._stream.codec_context.sample_rate or 0)
        self.frames: int | None = None
        self._skip = 0
        self._damaged = 0.0  # seconds
        self._frame_size = 0

    def seek(self, frame: int) -> None:
        self._skip = frame  # decoded, as a jump into such a file may miss its aim

    def steps(self) -> Iterator[np.ndarray]:
        skip, decoded = self._skip, 0
        for step in self._all():
            decoded += len(step)
            if skip < len(step):
                yield step[skip:]
            skip = max(0, skip - len(step))
        self.frames = decoded

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
        for packet in self._packets():
            try:
                yield from packet.decode()
            except av.FFmpegError:
                if packet.duration and packet.time_base:
                    self._damaged += float(packet.duration * packet.time_base)

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        # PyAV raises it behind the last packet where streams were announced late.
        with contextlib.suppress(IndexError):
            yield from self._container.demux(self._stream)

    def missing(self, read: int) -> str:
        seconds = read / self.rate
        promised = max(self._promised(), seconds * self._part.promised)
        missed = max(promised - seconds, self._damaged)
        reason = _cut_off(seconds, missed)
        if not reason and not (self._part.whole and self._part.ended):
            reason = _NO_END.format(seconds)
        return reason

    def _promised(self) -> float:
        """Seconds by the header, or 0 where it holds none."""
        stream, container = self._stream, self._container
        kind = container.format.name
        if kind == "mp3":
            return self._mpeg_frames * self._frame_size / self.rate
        if kind.startswith(_EXACT):
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            if container.duration and len(container.streams) == 1:
                return float(container.duration / av.time_base)
        return 0.0


def _tag(stream: av.AudioStream) -> str:
    try:
        return stream.codec_context.codec_tag
    except UnicodeDecodeError:
        return ""


def _arrays(frames: Iterable[av.AudioFrame]) -> Iterator[np.ndarray]:
    """float32[T, channels] of planar float frames."""
    for frame in frames:
        if frame.samples:
            yield frame.to_ndarray().T


def _cut_off(seconds: float, missed: float) -> str:
    if missed <= _MISSED:
        return ""
    return f"is damaged or cut off: {missed:.1f} s are missing, {seconds:.1f} s were read"
