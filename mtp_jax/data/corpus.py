"""The embedded corpus: sentences of `grammar`, spoken by `espeak`, as FLAC.

Every utterance is a pure function of (seed, split, index), so the corpus is bit for bit the
same however many processes speak it. Voices are an accent and a variant (a speaker, more or
less); the variants of dev and test are heard nowhere else.

``python -m mtp_jax.data.corpus SEED SPLIT COUNT NOISY WORKER WORKERS`` is what `spoken` runs:
worker processes that import neither JAX nor, as multiprocessing's would, the caller's main module.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import soundfile
import soxr

from mtp_jax import interrupts
from mtp_jax.audio.waveform import to_int16
from mtp_jax.data import espeak, grammar

SAMPLE_RATE = 16_000
MAX_SECONDS = 3.1  # longer sentences are spoken again, faster: none falls out of the buckets

ACCENTS = ("en", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp")

# espeak-ng's variants, less whispers, croaks and robots, those whose spectra stand farthest
# from the others' (mean frame distance of log-mel features after alignment: AnxiousAndy, Marco,
# Alicia, zac, Lee, ian, kaukovalta, shelby, marcelo, RicishayMax) and `fast`, which sounds like
# none at all. Relatives (steph, steph2, steph3) are kept in one split.
VARIANTS = {
    "train": (
        *("Alex", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique"),
        *("Hugo", "Jacky", "Mario", "Michael", "Mike", "Mr serious", "Nguyen", "Tweaky"),
        *("anika", "announcer", "antonio", "aunty", "boris", "caleb", "david", "ed"),
        *("edward", "edward2", "f1", "f3", "f4", "gustave", "iven", "iven2", "iven3", "iven4"),
        *("john", "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "m1", "m3", "m4"),
        *("m5", "m6", "m8", "max", "michel", "miguel", "mike2", "norbert", "paul", "pedro"),
        *("quincy", "rob", "robert", "sandro", "steph", "steph2", "steph3", "travis", "victor"),
    ),
    "dev": ("benjamin", "f5", "grandpa", "m7"),
    "test": ("Reed", "Storm", "adam", "belinda", "f2", "linda", "m2", "pablo"),
}


class Spoken(NamedTuple):
    """One utterance of the corpus.

    Attributes:
        text: what is said.
        voice: the speaker, such as "en-us+f3".
        seconds: its length.
        word_starts: seconds at which each word starts, NaN where espeak-ng speaks a word in one
            with the word before ("on the") and tells only where the pair starts.
        flac: the audio file, 16 bit, mono, at `SAMPLE_RATE`.
    """

    text: str
    voice: str
    seconds: float
    word_starts: list[float]
    flac: bytes


def utterance(text: str, seed: int, split: str, index: int, noisy: bool = False) -> Spoken:
    """Speaks `text` in a voice, at a speed, a pitch and a level that (seed, split, index) draw.

    Args:
        text: one sentence.
        seed, split, index: which utterance it is.
        noisy: in a room, with noise, see `degraded`; otherwise the same utterance.
    """
    draw = np.random.default_rng([seed, grammar.SPLITS.index(split), index])
    voice = f"{draw.choice(ACCENTS)}+{draw.choice(VARIANTS[split])}"
    rate, pitch, pitch_range = (int(draw.integers(*r)) for r in ((135, 166), (40, 61), (40, 71)))
    before, after = draw.uniform(0.05, 0.15, size=2)  # seconds of silence around it
    level = draw.uniform(-30, -18)  # RMS, dB below full scale

    speech = espeak.speak(text, voice, rate, pitch, pitch_range)
    while len(speech.waveform) / espeak.SAMPLE_RATE + before + after > MAX_SECONDS:
        rate += rate // 10
        speech = espeak.speak(text, voice, rate, pitch, pitch_range)

    wave = speech.waveform.astype(np.float32) / 2**15
    wave = soxr.resample(wave, espeak.SAMPLE_RATE, SAMPLE_RATE)
    gain = 10 ** (level / 20) / np.sqrt(np.mean(wave**2))
    wave *= min(gain, 0.9 / np.max(np.abs(wave)))
    margins = [round(s * SAMPLE_RATE) for s in (before, after)]
    wave = np.pad(wave, margins)
    if noisy:
        place = [seed, grammar.SPLITS.index(split), index]
        wave = degraded(wave, np.random.default_rng([*place, 1]))
    wave = to_int16(wave * 2**15)
    wave += draw.integers(-2, 3, size=len(wave), dtype=np.int16)  # a recording is never all zeros

    heard = {first: sample / espeak.SAMPLE_RATE + before for first, sample in speech.words}
    words = text.split(" ")
    firsts = itertools.accumulate((len(word) + 1 for word in words[:-1]), initial=0)
    starts = [heard.get(first, float("nan")) for first in firsts]
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return Spoken(text, voice, len(wave) / SAMPLE_RATE, starts, file.getvalue())


def degraded(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """`wave` as a microphone across a room hears it, with noise of some colour.

    The room is a direct sound and noise behind it that decays by 60 dB within 0.15 to 0.5 s, 0 to
    10 dB weaker in all; the noise is 0 to 12 dB weaker than the speech, its power falls with
    frequency to the power of 0 to 2, and it swells and ebbs.

    Args:
        wave: float32[T] at `SAMPLE_RATE`, within [-1, 1].
        draw: what is left open.

    Returns:
        float32[T], as loud as `wave`.
    """
    size, fast = len(wave), 1 << len(wave).bit_length()  # a power of 2 is transformed soonest
    decay = round(draw.uniform(0.15, 0.5) * SAMPLE_RATE)
    room = draw.standard_normal(decay) * 10 ** (-3 * np.arange(decay) / decay)
    room *= 10 ** (draw.uniform(-10, 0) / 20) / np.linalg.norm(room)
    room[0] = 1
    # What rings on beyond the end, and would come in again at the beginning, fits in the padding.
    padded = 1 << (size + decay).bit_length()
    heard = np.fft.irfft(np.fft.rfft(wave, padded) * np.fft.rfft(room, padded), padded)[:size]

    frequency = np.maximum(np.fft.rfftfreq(fast, 1 / SAMPLE_RATE), 50)
    coloured = np.fft.rfft(draw.standard_normal(fast)) * frequency ** (-draw.uniform(0, 2) / 2)
    swell = 1 + 0.7 * np.sin(2 * np.pi * (draw.uniform(0.3, 2) * np.arange(size) / SAMPLE_RATE))
    noise = np.fft.irfft(coloured, fast)[:size] * swell
    power = np.mean(heard**2) * 10 ** (-draw.uniform(0, 12) / 10)
    heard += noise * np.sqrt(power / np.mean(noise**2))
    heard *= np.sqrt(np.mean(wave**2) / np.mean(heard**2))
    heard *= min(1, 0.9 / np.max(np.abs(heard)))
    return heard.astype(np.float32)


def spoken(
    seed: int, split: str, count: int, workers: int = 2, noisy: bool = False
) -> Generator[Spoken, None, None]:
    """The first `count` utterances of a split, in order, made by `workers` processes.

    Raises:
        espeak.EspeakError: a worker failed; the message is the last that it said.
        Interrupted: between two utterances.
    """
    # -P: modules come from where this one came from, never from the current directory.
    command = [sys.executable, "-P", "-m", "mtp_jax.data.corpus"]
    command += [str(seed), split, str(count), str(int(noisy))]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with interrupts.shielded():
        processes = [
            subprocess.Popen(
                [*command, str(worker), str(workers)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
            for worker in range(workers)
        ]
    try:
        for index in range(count):
            interrupts.raise_if_requested()
            yield _read(processes[index % workers])
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _read(process: subprocess.Popen[bytes]) -> Spoken:
    """The next utterance of a worker: a line of JSON, then as many bytes of FLAC as it says."""
    output, errors = cast(IO[bytes], process.stdout), cast(IO[bytes], process.stderr)
    line = output.readline()
    if line.endswith(b"\n"):
        header = json.loads(line)
        size = header.pop("bytes")
        flac = output.read(size)
        if len(flac) == size:
            return Spoken(**header, flac=flac)
    interrupts.raise_if_requested()  # SIGTERM to a whole group of processes ends the workers too
    said = errors.read().decode(errors="replace").strip().splitlines()
    raise espeak.EspeakError(said[-1] if said else "a process that speaks the corpus was killed")


def _write(file: IO[bytes], item: Spoken) -> None:
    header = item._asdict()
    flac = header.pop("flac")
    file.write(json.dumps(header | {"bytes": len(flac)}).encode() + b"\n" + flac)


def _work(seed: int, split: str, count: int, noisy: int, worker: int, workers: int) -> None:
    texts = itertools.islice(grammar.sentences(split, seed), count)
    for index, text in enumerate(texts):
        if index % workers == worker:
            _write(sys.stdout.buffer, utterance(text, seed, split, index, bool(noisy)))


if __name__ == "__main__":
    seed_, split_, *numbers = sys.argv[1:]
    try:
        _work(int(seed_), split_, *map(int, numbers))
    except espeak.EspeakError as error:
        sys.exit(str(error))
