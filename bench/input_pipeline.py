"""What reading costs: examples a second of one host core, and what a pod needs.

    python -m bench.input_pipeline --data=FOLDER_OR_MANIFEST [--batches=40] [--speeds=0.9,1,1.1]
        [--examples_per_chip_second=20 --chips=16 --chips_per_host=4]
    python -m bench.input_pipeline --utterances=1000000

The first reads training batches and divides by the CPU time of all threads of the process, so that
what else the machine does is left out; opening the source is shown apart. The second makes an index
of so many utterances (25 words each) and measures what beginning a run on it takes.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import resource
import tempfile
import time

import numpy as np
from absl import app, flags

from mtp_jax.config import Augment, Config, Data
from mtp_jax.data import Utterance, open_source, train_batches
from mtp_jax.data.records import INDEX, write_index
from mtp_jax.tokenizer import Tokenizer

_DATA = flags.DEFINE_string("data", "", "source, as in config.data.train")
_BATCHES = flags.DEFINE_integer("batches", 40, "batches to read")
_ROWS = flags.DEFINE_integer("batch_size", 16, "rows of a batch")
_THREADS = flags.DEFINE_integer("workers", 2, "config.data.workers")
_SPEEDS = flags.DEFINE_list("speeds", ["1"], "config.augment.speeds")
_NEED = flags.DEFINE_float("examples_per_chip_second", 0, "what a chip trains on")
_CHIPS = flags.DEFINE_integer("chips_per_host", 4, "chips that share a host's cores")
_UTTERANCES = flags.DEFINE_integer("utterances", 0, "size of an index to make and open")


def read() -> None:
    config = Config(
        data=Data(
            train=_DATA.value,
            bucket_seconds=(8.0, 17.0, 30.0),
            batch_size=_ROWS.value,
            max_tokens=512,
            workers=_THREADS.value,
        ),
        augment=Augment(speeds=tuple(float(x) for x in _SPEEDS.value)),
    )
    start = time.perf_counter()
    source = open_source(_DATA.value, config.data, 16_000)
    opened = time.perf_counter() - start
    texts = [utterance.text for utterance in source.utterances]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.train(texts[:20_000], f"{folder}/t.model", 128)
    batches, _ = train_batches(source, tokenizer, config)
    next(batches)
    start, used = time.perf_counter(), time.process_time()
    examples, samples = 0, 0
    for _ in range(_BATCHES.value):
        batch = next(batches)
        examples += int((batch.index >= 0).sum())
        samples += int(batch.audio_length.sum())
    wall, used = time.perf_counter() - start, time.process_time() - used
    per_core = examples / used
    print(
        f"{source.title}: {len(texts)} utterances, opened in {opened:.2f} s\n"
        f"{examples} examples, {samples / 16_000 / examples:.1f} s of audio each:"
        f" {per_core:.0f} examples a second of one core ({samples / 16_000 / used:.0f} s of audio),"
        f" {examples / wall:.0f} a second of wall clock with {_THREADS.value} threads"
    )
    if _NEED.value:
        host = _NEED.value * _CHIPS.value
        print(
            f"{_NEED.value:g} examples a second a chip, {_CHIPS.value} chips a host:"
            f" {host / per_core:.2f} cores of each host"
        )


def begin(count: int) -> None:
    draw = np.random.default_rng(0)
    words = [f"word{i}" for i in range(500)]

    def utterances():
        for i in range(count):
            text = " ".join(words[j] for j in draw.integers(0, 500, 25))
            yield Utterance(f"speaker/{i}", text, float(draw.uniform(2, 16)))

    def memory() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        made = utterances()
        shards = (list(itertools.islice(made, 4096)) for _ in range(0, count, 4096))
        # In a process of its own, whose memory does not count here.
        if (child := os.fork()) == 0:
            write_index(path / INDEX, shards, 16_000)
            os._exit(0)
        os.waitpid(child, 0)
        config = Config(data=Data(bucket_seconds=(8.0, 17.0), batch_size=16, max_tokens=512))
        tokenizer = Tokenizer.train(words, path / "t.model", 40)
        before, start = memory(), time.process_time()
        source = open_source(folder, config.data, 16_000)
        opened = time.process_time()
        batches, _ = train_batches(source, tokenizer, config)
        del batches
        planned = time.process_time()
        size = (path / INDEX).stat().st_size / 1e6
        hours = sum(u.seconds for u in source.utterances) / 3600
        print(
            f"{count} utterances, {hours:.0f} h: index {size:.0f} MB;"
            f" opened in {opened - start:.1f} s of CPU time, texts counted in tokens and batches"
            f" planned in {planned - opened:.1f} s, {memory() - before:.2f} GB of memory"
        )


def main(argv: list[str]) -> None:
    del argv
    if _UTTERANCES.value:
        begin(_UTTERANCES.value)
    if _DATA.value:
        read()


if __name__ == "__main__":
    app.run(main)
