"""How far a model's word times are from where a speech synthesiser says its words are.

    python -m bench.word_times --model=DIR [--count=200] [--noisy]

The synthesiser is that of the embedded corpus; it tells where words begin (of words run into one,
such as "on the", where the first does) and words follow each other without a pause, so that the
next one's beginning is taken for a word's end. The texts are those that were said, aligned with the
encoder's CTC output: times are measured, not recognition.
"""

from __future__ import annotations

import io
import itertools

import jax
import numpy as np
import soundfile
from absl import app, flags, logging

import mtp_jax
from mtp_jax.data import corpus, grammar
from mtp_jax.decoding import CtcGreedy
from mtp_jax.transcription.alignment import align
from mtp_jax.transcription.spelling import labels_of
from mtp_jax.transcription.word_times import CtcAligner, word_spans

_MODEL = flags.DEFINE_string("model", None, "a workdir, or an exported model", required=True)
_COUNT = flags.DEFINE_integer("count", 200, "sentences of the corpus's test")
_NOISY = flags.DEFINE_bool("noisy", False, "in rooms and noise")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    model = mtp_jax.load(_MODEL.value)
    texts = list(itertools.islice(grammar.sentences("test", 0), _COUNT.value))
    starts, ends = [], []
    for at in range(0, len(texts), model.batch_size):
        said = [
            corpus.utterance(texts[i], 0, "test", i, _NOISY.value)
            for i in range(at, min(at + model.batch_size, len(texts)))
        ]
        waves = [soundfile.read(io.BytesIO(item.flac), dtype="int16")[0] for item in said]
        batch = model._batch(waves)
        inference = jax.device_get(model.runner.run(batch, CtcGreedy(), with_alignment=True))
        ctc, frames = inference.ctc_log_probs, inference.frames
        for row, item in enumerate(said):
            labels, word = labels_of(model.runner.tokenizer.ctc, item.text.split())
            found = align(ctc[row, : frames[row]], labels)
            if found is None:
                continue
            spans, _ = word_spans(found, word, len(item.word_starts), len(ctc[row]))
            spans = spans * CtcAligner(model.runner).frame_seconds
            truth = np.array(item.word_starts)
            starts += list(spans[:, 0] - truth)
            ends += list(spans[:-1, 1] - truth[1:])
    for name, found in (("start", starts), ("end", ends)):
        errors = np.array(found)[np.isfinite(found)]
        print(
            f"{name}: {len(errors)} words, mean error {np.abs(errors).mean():.3f} s,"
            f" median {np.median(np.abs(errors)):.3f} s,"
            f" 95 % within {np.percentile(np.abs(errors), 95):.3f} s, bias {errors.mean():+.3f} s"
        )


if __name__ == "__main__":
    app.run(main)
