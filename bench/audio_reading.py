"""How fast recordings are read, by format: seconds of audio a second on one core, decoded,
mixed and resampled to 16 kHz.

    python -m bench.audio_reading [--minutes=10] [--rounds=5]

The recordings are noise whose loudness goes up and down. The best of the rounds counts.
"""

from __future__ import annotations

import fractions
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import soundfile
from absl import app, flags

from mtp_jax.audio.reading import audio_blocks

_MINUTES = flags.DEFINE_integer("minutes", 10, "of each recording")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of which the best counts")
_KINDS = {"wav": "", "flac": "", "mp3": "libmp3lame", "opus": "libopus", "m4a": "aac"}
_LAYOUTS = {1: "mono", 2: "stereo"}


def write(path: Path, samples: np.ndarray, rate: int, codec: str) -> None:
    """Writes int16[T, channels]; by libsndfile if no codec is named."""
    if not codec:
        soundfile.write(path, samples, rate)
        return
    layout = _LAYOUTS[samples.shape[1]]
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, fractions.Fraction(1, rate)
        file.mux([*stream.encode(frame), *stream.encode(None)])


def main(argv: list[str]) -> None:
    print("| format | 16 kHz mono | 44.1 kHz stereo |\n|---|---|---|")
    for kind, codec in _KINDS.items():
        found = []
        for rate, channels in ((16_000, 1), (44_100, 2)):
            rate = 48_000 if codec == "libopus" else rate  # the rate that its decoder has
            seconds = 60 * _MINUTES.value
            draw = np.random.default_rng(0)
            loudness = 1 + np.sin(np.arange(seconds * rate) / rate)
            noise = draw.normal(0, 3000, (seconds * rate, channels)) * loudness[:, None]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"a.{kind}"
                write(path, noise.astype(np.int16), rate, codec)
                best = min(_timed(path) for _ in range(_ROUNDS.value))
            found.append(f"{seconds / best:,.0f}")
        print(f"| {kind} | {' | '.join(found)} |", flush=True)


def _timed(path: Path) -> float:
    start = time.perf_counter()
    for _ in audio_blocks(path, 16_000):
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main)
