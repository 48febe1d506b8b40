"""What a Whisper writes where nobody speaks: silence, noise, hum and music, all made here.

    python -m bench.invented_text --model=FOLDER [--pretrained=FOLDER] [--seconds=3,10,30]
        [--silence=SECONDS] [--strategy=greedy]

Each sound is transcribed as a recording is, and a second time as a chunk that voice-activity
detection would have let through. Every text is invented; the table has those that are not empty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from absl import flags

from mtp_jax import cli
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.inference.model_folder import open_model_folder

_MODEL = flags.DEFINE_string("model", None, "a Whisper, or a workdir with heads", required=True)
_PRETRAINED = cli.pretrained_flag()
_STRATEGY = flags.DEFINE_string("strategy", "greedy", "that decodes")
_SECONDS = flags.DEFINE_list("seconds", ["3", "10", "30"], "how long each sound is")
_SILENCE = cli.silence_flag()

RATE, _SIZE = 16_000, 8
Sound = Callable[[int, np.random.Generator], np.ndarray]


def noise(power: float) -> Sound:
    """Noise whose power falls with frequency ** `power`: 0 is white, 1 pink, 2 brown."""

    def made(samples: int, rng: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.rfft(rng.normal(size=samples))
        frequency = np.fft.rfftfreq(samples, 1 / RATE)
        spectrum *= np.where(frequency > 20, np.maximum(frequency, 20) ** (-power / 2), 0)
        return np.asarray(np.fft.irfft(spectrum, samples))

    return made


def note(pitch: float, samples: int, decay: float) -> np.ndarray:
    """A plucked string, so many semitones above the A of 220 Hz."""
    t = np.arange(samples) / RATE
    partials = sum(
        np.sin(2 * np.pi * 220 * 2 ** (pitch / 12) * k * t) / k**1.5 for k in range(1, 8)
    )
    return np.asarray(partials * np.exp(-decay * t) * np.minimum(t / 0.01, 1))


def played(beat: float, chord: Callable[[int, np.random.Generator], list[int]]) -> Sound:
    """Notes that begin every `beat` seconds and last two of them."""

    def made(samples: int, rng: np.random.Generator) -> np.ndarray:
        out, step = np.zeros(samples), round(beat * RATE)
        for i, start in enumerate(range(0, samples, step)):
            left = min(2 * step, samples - start)
            for pitch in chord(i, rng):
                out[start : start + left] += note(pitch, left, 1 / beat)
        return out

    return made


def hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """The mains, and what it excites."""
    t = np.arange(samples) / RATE
    waves = [np.sin(2 * np.pi * (50 * k * t + rng.random())) / k for k in range(1, 12)]
    return np.asarray(sum(waves))


def drums(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A bass drum and a hi-hat in turn."""
    out, step = np.zeros(samples), RATE // 4
    for i, start in enumerate(range(0, samples, step)):
        t = np.arange(min(2 * step, samples - start)) / RATE
        low = 3 * np.sin(2 * np.pi * 60 * t) * np.exp(-12 * t)
        high = rng.normal(size=len(t)) * np.exp(-30 * t)
        out[start : start + len(t)] += high if i % 2 else low
    return out


def band(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Chords, a melody and drums."""
    return np.asarray(sum(SOUNDS[name](samples, rng) for name in ("chords", "melody", "drums")))


_CHORDS = ([0, 4, 7], [9, 12, 16], [5, 9, 12], [7, 11, 14])
_SCALE = (0, 2, 4, 7, 9, 12, 14, 16)
SOUNDS: dict[str, Sound] = {
    "silence": lambda samples, rng: np.zeros(samples),
    "white noise": noise(0),
    "pink noise": noise(1),
    "brown noise": noise(2),
    "hum": hum,
    "chords": played(1.0, lambda i, rng: _CHORDS[i % len(_CHORDS)]),
    "melody": played(0.25, lambda i, rng: [int(rng.choice(_SCALE)) + 3]),
    "drums": drums,
    "band": band,
}


def waveform(name: str, seconds: float, decibels: float) -> np.ndarray:
    """int16[T], so loud on average, below full scale; silence stays silent."""
    made = SOUNDS[name](round(seconds * RATE), np.random.default_rng(0))
    level = 10 ** (decibels / 20) / max(float(np.std(made)), 1e-9)
    return np.clip(made * level * 32768, -32768, 32767).astype(np.int16)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start_jax(open_model_folder(_MODEL.value).read_config())
    from mtp_jax.transcription.loading import load

    model = load(
        _MODEL.value, batch_size=_SIZE, silence=_SILENCE.value, pretrained=_PRETRAINED.value
    )
    sounds = {
        (name, float(seconds), decibels): waveform(name, float(seconds), decibels)
        for name in SOUNDS
        for seconds in _SECONDS.value
        for decibels in (-20.0, -40.0)
    }
    whole = dict(model.transcribe_all(sounds.items(), rate=RATE, strategy=_STRATEGY.value))
    heard = {}
    for start in range(0, len(sounds), _SIZE):
        part = list(sounds)[start : start + _SIZE]
        chunks = [Chunk(0.0, sounds[key], key[1]) for key in part]
        for key, segment in zip(part, model.decode(chunks, _STRATEGY.value), strict=True):
            heard[key] = " ".join(word.text for word in segment.words)
    print("| sound | s | dB | text | text without voice-activity detection |")
    print("|---|---|---|---|---|")
    for key, text in heard.items():
        if text or whole[key].text:
            name, seconds, decibels = key
            print(f"| {name} | {seconds:g} | {decibels:g} | {whole[key].text} | {text} |")
    invented = sum(bool(transcript.text) for transcript in whole.values())
    detected = sum(map(bool, heard.values()))
    print(f"of {len(sounds)}: {invented} with a text, {detected} without the detection")


if __name__ == "__main__":
    sys.exit(cli.run(main))
