"""Copies of recordings as a far microphone or a telephone line would have them.

    python -m bench.degrade --data=librispeech.test.jsonl --copies=3 --output=FOLDER

Each copy is drawn by itself: all are in a room with noise (`mtp_jax.data.corpus.degraded`: an echo,
and noise 0 to 12 dB below the speech), and one third is cut to the band of a telephone as well (300
to 3400 Hz). The same seed gives the same copies; a copy that is there is not made again.

Writes ``FOLDER/audio/*.flac`` and ``FOLDER/NAME.degraded.jsonl``, whose lines have what those of
the manifest have.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import soundfile
import tqdm
from absl import app, flags

from bench.telephone import telephone
from mtp_jax.data.corpus import SAMPLE_RATE, degraded

_DATA = flags.DEFINE_string("data", None, "a JSON-lines manifest", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "the folder to write to", required=True)
_COPIES = flags.DEFINE_integer("copies", 1, "of each recording", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of what is drawn")

TELEPHONE = 1 / 3  # of the copies


def copy(wave: np.ndarray, name: str, seed: int, number: int) -> np.ndarray:
    """One copy of float32[T] at 16 kHz; `name`, `seed` and `number` say which."""
    draw = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    far = degraded(wave, draw)
    return telephone(far) if draw.uniform() < TELEPHONE else far


def main(argv: list[str]) -> None:
    """See the module's docstring."""
    del argv
    manifest, output = Path(_DATA.value), Path(_OUTPUT.value)
    (output / "audio").mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    written = []
    for line in tqdm.tqdm(lines, desc=f"degrading {manifest.name}"):
        name = line["audio_filepath"]
        wave = None
        for number in range(_COPIES.value):
            file = Path("audio") / f"{Path(name).with_suffix('')}.{_SEED.value}.{number}.flac"
            if not (output / file).exists():
                if wave is None:
                    wave, rate = soundfile.read(manifest.parent / name, dtype="float32")
                    if rate != SAMPLE_RATE or wave.ndim > 1:
                        sys.exit(f"error: {name} is not mono at {SAMPLE_RATE} Hz: convert it first")
                (output / file).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(output / file, copy(wave, name, _SEED.value, number), SAMPLE_RATE)
            written.append({**line, "audio_filepath": str(file)})
    made = output / f"{manifest.stem}.degraded.jsonl"
    made.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written))
    print(f"{len(written)} recordings: {made}")


if __name__ == "__main__":
    app.run(main)
