"""python -m mtp_jax.transcribe --live: PCM in, captions out."""

from __future__ import annotations

import io
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from mtp_jax.audio.errors import AudioError
from mtp_jax.audio.pcm_stream import pcm_blocks
from mtp_jax.transcription.captions import Captions
from mtp_jax.transcription.live_events import Caption, Started
from tests.commands import run
from tests.recordings import RATE, flac
from tests.test_live import at_once, words

ROOT = pathlib.Path(__file__).parent.parent


class Trickle(io.RawIOBase):
    """A pipe whose writer takes its time: few bytes at once, an odd number of them."""

    def __init__(self, content: bytes, size: int = 333) -> None:
        self.content, self.size, self.reads = content, size, 0

    def read1(self, most: int) -> bytes:
        self.reads += 1
        some, self.content = self.content[: self.size], self.content[self.size :]
        return some


def heard(content: bytes, size: int = 333) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int16), *pcm_blocks(Trickle(content, size), RATE)])


def wav(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16", kind="WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, subtype, format=kind)
    return out.getvalue()


NOISE = np.random.default_rng(0).normal(0, 3000, 5000).astype(np.int16)


@pytest.mark.parametrize("size", [1, 333, 100_000])
def test_pcm_is_raw_or_wav_and_comes_in_any_pieces(size):
    np.testing.assert_array_equal(heard(NOISE.tobytes(), size), NOISE)
    np.testing.assert_array_equal(heard(NOISE.tobytes() + b"x", size), NOISE)
    for kind in ("WAV", "WAVEX"):
        np.testing.assert_array_equal(heard(wav(NOISE, kind=kind), size), NOISE)
    assert not len(heard(b"", size)) and not len(heard(b"R", size))


def test_the_length_in_a_header_is_not_asked_for():
    content = bytearray(wav(NOISE))
    for length in (0, 0xFFFFFFFF):
        content[40:44] = struct.pack("<I", length)
        np.testing.assert_array_equal(heard(bytes(content)), NOISE)


def test_channels_and_rates_become_the_models():
    both = np.stack([NOISE, NOISE], axis=1)
    np.testing.assert_allclose(heard(wav(both)), NOISE, atol=1)
    assert len(heard(wav(NOISE, 48_000))) == pytest.approx(len(NOISE) / 3, abs=2)
    assert len(heard(wav(NOISE, 8_000))) == pytest.approx(2 * len(NOISE), abs=2)


def test_blocks_come_as_soon_as_they_are_there():
    stream = Trickle(NOISE.tobytes(), 400)
    first = next(pcm_blocks(stream, RATE))
    assert len(first) == 200 and stream.reads == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav(NOISE, subtype="FLOAT"), "format 3, 32 bits"),
        (wav(NOISE, subtype="PCM_24"), "24 bits"),
        (wav(NOISE)[:30], "no samples that can be read"),
        (b"RIFF" + bytes(100), "no samples that can be read"),
        (wav(NOISE)[:24] + bytes(4) + wav(NOISE)[28:], "at 0 Hz"),
        (wav(NOISE, kind="WAV").replace(b"RIFF", b"RIFX"), "no samples|format"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\xff\xff\xff\xff" + bytes(3_000_000), "no samples"),
    ],
)
def test_a_header_of_other_samples_is_refused_in_a_sentence(content, said):
    with pytest.raises(AudioError, match=said):
        heard(content, 100_000)


@pytest.fixture(scope="module")
def said(waves) -> np.ndarray:
    return np.concatenate([waves[0], np.zeros(RATE, np.int16), waves[1]])


def test_a_pipe_gets_a_line_for_each_stretch(workdir, model, said):
    expected = [text for text in at_once(model, said) if text]
    for flags, stdin in (
        (["--live"], said.tobytes()),
        (["--live=-"], wav(said)),
        (["-", "--live"], said.tobytes()),
    ):
        done = run("transcribe", *flags, f"--model={workdir}", stdin=stdin)
        assert done.status == 0, done.err
        assert done.out.splitlines() == expected
        assert "listening" in done.err
    assert run("transcribe", "--live", f"--model={workdir}").out == ""


def test_lines_come_while_the_stream_goes_on_and_it_ends_when_told(workdir, model, said):
    first, *others = [text for text in at_once(model, said) if text]
    with subprocess.Popen(
        [sys.executable, "-m", "mtp_jax.transcribe", "--live", f"--model={workdir}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        process.stdin.write(said.tobytes())
        process.stdin.flush()
        assert process.stdout.readline().decode().strip() == first
        process.terminate()  # the stream is still open
        rest = process.stdout.read().decode()
        assert process.wait(60) == 0
        assert rest.splitlines() == others


@pytest.mark.parametrize(
    ("flags", "said", "status"),
    [
        (["--live", "a.wav"], "leave 'a.wav' out", 2),
        (["--live", "--output_dir=out"], "leave --output_dir out", 2),
        (["--live", "--format=srt"], "leave --format out", 2),
        (["--live=perhaps"], "live", 2),
        (["--live", "--language=de"], "takes no language", 1),
        (["--live", "--strategy=none"], "is not one of", 2),
    ],
)
def test_wrong_flags_get_a_sentence(workdir, flags, said, status):
    done = run("transcribe", *flags, f"--model={workdir}")
    assert (done.status, done.out) == (status, "")
    assert said in done.err and "Traceback" not in done.err


def test_a_stream_that_is_no_pcm_is_an_error(workdir):
    done = run("transcribe", "--live", f"--model={workdir}", stdin=wav(NOISE, subtype="FLOAT"))
    assert done.status == 1 and done.err.splitlines()[-1].startswith("error: stdin is WAV of other")
    assert flac(NOISE)[:4] == b"fLaC"  # is taken for raw samples: nothing tells


# ---- A terminal


def screen(written: str, columns: int) -> list[str]:
    """What a terminal shows of it."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        if written[at] == "\x1b":
            end = at + 2
            while not written[end].isalpha():
                end += 1
            if written[end] == "A":
                row -= int(written[at + 2 : end])
            elif written[end] == "J":
                lines = [*lines[:row], lines[row][:column]]
            at = end + 1
            continue
        if written[at] == "\r":
            column = 0
        elif written[at] == "\n":
            row, column = row + 1, 0
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column] + written[at] + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
        at += 1
    return lines


def test_a_terminal_shows_captions_that_grow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    captions = Captions(out, is_terminal=True)
    captions.show(Started(0, 0.0))
    captions.show(Caption(0, 0.0, (), words("he says\x1b[2J so"), False, 1.0, 3))
    assert screen(out.getvalue(), 20) == ["he says [2J so"]
    captions.show(
        Caption(0, 0.0, words("he said so and it goes"), words("on and on"), False, 2.0, 5)
    )
    assert screen(out.getvalue(), 20) == ["he said so and it go", "es on and on"]
    captions.show(Caption(0, 0.0, words("he said so"), (), True, 3.0, 7))
    captions.show(Caption(1, 3.0, (), words("then nothing"), False, 4.0, 9))
    captions.show(Caption(1, 3.0, (), (), True, 5.0, 9))  # it was no speech
    assert screen(out.getvalue(), 20) == ["he said so", ""]
    assert "\x1b[2mthen nothing\x1b[0m" in out.getvalue()
