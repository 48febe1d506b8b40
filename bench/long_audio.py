"""Long recordings: word errors, peak memory and speed.

    python -m bench.long_audio --model=DIR [--data=SOURCE] [--hours=1] [--pauses=0.1,0.3,1]
        [--strategy=verify]

Utterances of a source (the config's test by default) are joined to one FLAC file, with pauses
drawn from --pauses between them (0 for none), again and again up to --hours (0: each once). That
file is transcribed, and so are its utterances one by one: the difference is what cutting costs.
"""

from __future__ import annotations

import pathlib
import resource
import tempfile
import time

import numpy as np
import soundfile
from absl import app, flags, logging

import mtp_jax
from mtp_jax.data import open_source
from mtp_jax.evaluation.metrics import word_errors

_MODEL = flags.DEFINE_string("model", None, "a workdir, or an exported model", required=True)
_DATA = flags.DEFINE_string("data", None, "source; default: the config's test")
_HOURS = flags.DEFINE_float("hours", 1.0, "length of the file; 0 takes each utterance once")
_PAUSES = flags.DEFINE_list("pauses", ["0.1", "0.3", "1"], "s between utterances, drawn evenly")
_STRATEGY = flags.DEFINE_string("strategy", "verify", "of decoding")
_FULL_ALIGNMENT = 20_000  # words; beyond, aligning them all takes too much memory


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    model = mtp_jax.load(_MODEL.value)
    config = model.runner.model.config
    rate = model.sample_rate
    source = open_source(_DATA.value or config.data.test, config.data, rate)
    count, draw, said = len(source.utterances), np.random.default_rng(0), []
    model.transcribe(source.waveform(0), rate=rate, strategy=_STRATEGY.value)
    with tempfile.TemporaryDirectory() as folder:
        file, samples = pathlib.Path(folder) / "long.flac", 0
        with soundfile.SoundFile(file, "w", rate, 1, "PCM_16", format="FLAC") as out:
            while (samples < _HOURS.value * 3600 * rate) if _HOURS.value else (len(said) < count):
                index = len(said) % count
                pause = float(draw.choice([float(p) for p in _PAUSES.value]))
                for part in (
                    source.waveform(index),
                    draw.integers(-3, 4, round(pause * rate)).astype(np.int16),
                ):
                    out.write(part)
                    samples += len(part)
                said.append(source.utterances[index].text)
        start = time.perf_counter()
        found = model.transcribe(file, strategy=_STRATEGY.value)
        wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    normalize, reference = config.evaluation.normalizer, " ".join(said)
    print(
        f"{samples / rate / 3600:.2f} h in {len(found.segments)} segments:"
        f" {len(found.text.split())} words of {len(reference.split())},"
        f" {samples / rate / wall:.0f} times as fast as speech ({wall:.0f} s, compilation in it),"
        f" peak memory {peak:.0f} MB"
    )
    if len(reference.split()) <= _FULL_ALIGNMENT:
        joined = word_errors([reference], [found.text], normalize).percent
        alone = dict(
            model.transcribe_all(
                ((i, source.waveform(i)) for i in range(min(count, len(said)))),
                rate=rate,
                strategy=_STRATEGY.value,
            )
        )
        texts = [alone[i].text for i in sorted(alone)]
        single = word_errors(said[: len(texts)], texts, normalize).percent
        print(f"WER {joined:.2f} % of the whole, {single:.2f} % of its utterances one by one")


if __name__ == "__main__":
    app.run(main)
