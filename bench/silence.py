"""How much silence a Whisper needs behind an utterance: WER, texts decoded again, time.

    python -m bench.silence --model=FOLDER --data=dev.jsonl [--silence=1,2,3,5,30] [--language=en]
        [--normalizer=english] [--batch_size=8] [--count=100] [--dtype=bfloat16] [--output=FILE]

Greedy. The last value of ``--silence`` is what the others are compared with, by a paired bootstrap
over utterances: 30 fills the window, as in Whisper's training. *Again* counts the texts that went
wrong and were decoded a second time, in the full window (`mtp_jax.inference.fallback`); their time
counts. Encoder seconds are those of one pass over the data, compilation apart. ``--count`` takes as
many utterances, evenly; ``--output`` keeps the texts as JSON lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags

from mtp_jax import cli
from mtp_jax.data import Batch, Source, open_source
from mtp_jax.decoding import Greedy
from mtp_jax.evaluation.compare import outcome_errors
from mtp_jax.evaluation.metrics import bootstrap_difference
from mtp_jax.evaluation.outcome import Outcome, decode_source
from mtp_jax.evaluation.task import Task
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.speech_features import speech_features
from mtp_jax.paths import to_path

_MODEL = flags.DEFINE_string("model", None, "a Whisper, or a workdir with heads", required=True)
_DATA = flags.DEFINE_string("data", None, "source of the utterances", required=True)
_SILENCE = flags.DEFINE_list("silence", ["1", "2", "3", "5", "30"], "seconds; the last is compared")
_LANGUAGE = flags.DEFINE_string("language", "", "code of their language; default: it is detected")
_NORMALIZER = flags.DEFINE_string("normalizer", "english", "of texts: english, basic or none")
_SIZE = flags.DEFINE_integer("batch_size", 8, "utterances decoded at once", lower_bound=1)
_COUNT = flags.DEFINE_integer("count", None, "utterances; default: all", lower_bound=1)
_DTYPE = cli.dtype_flag()
_OUTPUT = flags.DEFINE_string("output", "", "file for the texts")


def utterances() -> Source:
    """Those to be decoded."""
    config = open_model_folder(_MODEL.value).read_config()
    source = open_source(_DATA.value, config.data, config.front_end.sample_rate)
    every = len(source.utterances)
    count = min(_COUNT.value or every, every)
    return source.subset(np.linspace(0, every - 1, count).round().astype(int).tolist())


def batches_of(source: Source, runner: Runner) -> Iterator[Batch]:
    """Batches of `source` in the language that was asked for."""
    special = runner.model.vocabulary.whisper
    assert special is not None
    start = np.array(special.start_tokens(_LANGUAGE.value), np.int32)
    for batch in Task.of(source, runner).batches(_SIZE.value):
        yield batch._replace(start=np.tile(start, (len(batch.index), 1)))


def encoder_seconds(source: Source, runner: Runner) -> float:
    """Of one pass; each shape is compiled before it counts."""
    encode, seconds, known = jax.jit(speech_features, static_argnums=0), 0.0, set()
    for batch in batches_of(source, runner):
        batch = runner.place(batch._replace(tokens=batch.tokens[:, :0]))
        for _ in range(1 if batch.audio.shape in known else 2):
            start = time.perf_counter()
            jax.block_until_ready(encode(runner.model, runner.params, batch))
            taken = time.perf_counter() - start
        known.add(batch.audio.shape)
        seconds += taken
    return seconds


def keep(outcome: Outcome, silence: str) -> None:
    """Adds the texts to the file."""
    with to_path(_OUTPUT.value).open("a") as file:
        for h in outcome.hypotheses:
            line = {"silence": silence, "id": h.id, "reference": h.reference, "text": h.text}
            print(json.dumps(line, ensure_ascii=False), file=file)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    workdir, source = open_model_folder(_MODEL.value), utterances()
    cli.start_jax(workdir.read_config())
    compared = None
    print("| silence, s | WER % | against the last | again | encoder s | all s |")
    print("|---|---|---|---|---|---|")
    for silence in reversed(_SILENCE.value):
        runner = load(workdir, silence=float(silence), dtype=_DTYPE.value)
        outcome = decode_source(runner, source, batches_of(source, runner), Greedy())
        errors = outcome_errors(outcome, _NORMALIZER.value)
        compared = compared or errors
        low, high = bootstrap_difference(errors, compared)
        again = sum(h.calls > len(h.tokens) for h in outcome.hypotheses)
        print(
            f"| {silence} | {errors.percent:.2f} | {low:+.2f} to {high:+.2f} | {again}"
            f" | {encoder_seconds(source, runner):.0f} | {outcome.wall_seconds:.0f} |",
            flush=True,
        )
        if _OUTPUT.value:
            keep(outcome, silence)


if __name__ == "__main__":
    sys.exit(cli.run(main))
