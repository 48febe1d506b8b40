"""Files are closed by whoever leaves off reading, not by the garbage collector."""

from __future__ import annotations

import gc
import pathlib

import av
import numpy as np
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError, audio_blocks, audio_seconds, read_audio, refuse
from mtp_jax.audio.segmentation import cut

RATE = 16_000
SUFFIXES = ["wav", "flac", "mp3", "ogg", "m4a"]  # read by libsndfile and by FFmpeg


@pytest.fixture(autouse=True)
def _no_garbage_collection():
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module", params=SUFFIXES)
def recording(request, tmp_path_factory) -> pathlib.Path:
    """Three blocks long."""
    path = tmp_path_factory.mktemp("closing") / f"long.{request.param}"
    samples = np.random.default_rng(0).integers(-9000, 9000, 160 * RATE).astype(np.int16)
    if request.param == "m4a":
        with av.open(path, "w") as file:
            stream = file.add_stream("aac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate = RATE
            file.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for part in np.split(samples, 16):  # libsndfile overflows the stack on long Vorbis
                file.write(part)
    return path


def is_open(path: pathlib.Path) -> bool:
    links = pathlib.Path("/proc/self/fd").iterdir()
    return path in {link.readlink() for link in links if link.is_symlink()}


class Speech:
    """Stands in for the detector: all is speech, until it fails."""

    fails = False

    def __init__(self, rate: int) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *unused: object) -> None: ...

    def feed(self, block: np.ndarray) -> np.ndarray:
        if self.fails:
            raise RuntimeError("out of memory")
        return np.ones(len(block) // 512, np.float32)


class Failing(Speech):
    fails = True


def test_a_reader_that_is_closed_after_a_block_closes_its_file(recording):
    blocks = audio_blocks(recording, 8000)
    next(blocks)
    assert is_open(recording)
    blocks.close()
    assert not is_open(recording)


def test_cutting_that_is_closed_after_a_piece_closes_the_file_of_its_blocks(recording):
    blocks = audio_blocks(recording, RATE)  # this name keeps it from being collected
    pieces = cut(blocks, RATE, 3.2, Speech)
    next(pieces)
    assert is_open(recording)
    pieces.close()
    assert not is_open(recording)
    assert next(blocks, None) is None


def test_an_error_that_is_kept_keeps_no_file_open(recording):
    """Its traceback keeps every frame, with all that these have names for."""
    kept = []

    def cut_it() -> None:
        list(cut(audio_blocks(recording, 8000), 8000, 3.2, Failing))

    def leave_off() -> None:
        for _ in audio_blocks(recording, RATE):
            raise RuntimeError("of the caller")

    for call in (cut_it, leave_off):
        with pytest.raises(RuntimeError) as caught:
            call()
        kept.append(caught.value)
        assert not is_open(recording)


def test_a_file_that_is_refused_is_closed(recording, tmp_path):
    content = recording.read_bytes()
    cut_off = tmp_path / recording.name
    damaged = tmp_path / f"damaged{recording.suffix}"
    cut_off.write_bytes(content[: len(content) // 2])
    damaged.write_bytes(bytes(300))
    kept = []
    for path in (cut_off, damaged):
        for call in (lambda path: read_audio(path, RATE, warn=refuse), audio_seconds):
            try:
                call(path)
            except AudioError as error:
                kept.append(error)
            assert not is_open(path)
    assert len(kept) >= 3
