"""How far a model's word times are from where a speech synthesiser says its words are.

    python -m bench.word_times --model=DIR [--count=200] [--noisy] [--silence=30]
        [--split=test] [--seed=0]

The synthesiser is that of the embedded corpus; it tells where words begin (of words run into one,
such as "on the", where the first does) and words follow each other without a pause, so that the
next one's beginning is taken for a word's end. The texts are those that were said, aligned as
transcribing aligns them (by CTC, or by a Whisper's attention): times are measured, not recognition.
``--silence`` is what a Whisper's encoder hears behind a sentence, in seconds. What is chosen is
chosen on another split or seed.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from absl import app, flags, logging
from flax import struct

import mtp_jax
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.data import corpus, grammar
from mtp_jax.decoding import Decoded, registry
from mtp_jax.transcription.spelling import spell
from mtp_jax.transcription.word_times import Text, make_aligner

_MODEL = flags.DEFINE_string("model", None, "a workdir, an export or a Whisper", required=True)
_COUNT = flags.DEFINE_integer("count", 200, "sentences of the corpus")
_SPLIT = flags.DEFINE_enum("split", "test", grammar.SPLITS, "of the corpus")
_SEED = flags.DEFINE_integer("seed", 0, "of the corpus")
_SILENCE = flags.DEFINE_float("silence", None, "seconds behind a sentence; default: the model's")
_NOISY = flags.DEFINE_bool("noisy", False, "in rooms and noise")
_BATCH = 4

# It calls no decoder: so no text is decoded again.
registry.register(registry.Entry("given", "texts that are told", lambda _: (), calls_decoder=False))


@struct.dataclass
class Given:
    """A strategy that is told the texts: float32[B, L] tokens and float32[B] length."""

    tokens: Any
    length: Any

    @property
    def name(self) -> str:
        return "given"

    def decode(self, model: Any, active: jax.Array, max_tokens: int) -> Decoded:
        tokens, length = self.tokens.astype(jnp.int32), self.length.astype(jnp.int32)
        none = jnp.zeros((len(active), 0), jnp.int32)
        return Decoded(
            tokens=tokens,
            log_probs=jnp.zeros(tokens.shape),
            length=length,
            calls=jnp.zeros_like(length),
            proposed=none,
            accepted=none,
            loop_steps=jnp.int32(0),
            call=jnp.zeros_like(tokens),
        )


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    model = mtp_jax.load(_MODEL.value, batch_size=_BATCH)
    if _SILENCE.value is not None:
        c = model.runner.model.config
        c = dataclasses.replace(c, whisper=dataclasses.replace(c.whisper, silence=_SILENCE.value))
        model.runner.model = model.runner.model.clone(config=c)
    tokenizer, aligner = model.runner.tokenizer, make_aligner(model.runner)
    split, seed = _SPLIT.value, _SEED.value
    texts = list(itertools.islice(grammar.sentences(split, seed), _COUNT.value))
    starts, ends = [], []
    for at in range(0, len(texts) - _BATCH + 1, _BATCH):
        said = [corpus.utterance(texts[i], seed, split, i, _NOISY.value) for i in range(at, at + 4)]
        waves = [soundfile.read(io.BytesIO(item.flac), dtype="int16")[0] for item in said]
        given = np.full((_BATCH, 64), tokenizer.eos)
        rows = []
        for row, item in enumerate(said):
            # A Whisper's texts begin with a space.
            space = " " if model.runner.model.vocabulary.whisper else ""
            tokens = tokenizer.encode(space + item.text)
            given[row, : len(tokens)] = tokens
            rows.append(Text(tokens, spell(tokenizer, tokens), list(range(len(tokens))), False))
        length = [len(row.tokens) + 1 for row in rows]
        inference = model.runner.run(
            model._batch([Chunk(0.0, wave, 0.0) for wave in waves]),
            Given(jnp.float32(given), jnp.float32(length)),
            with_alignment=True,
        )
        for item, found in zip(said, aligner.times(inference, rows, waves), strict=True):
            truth = np.array(item.word_starts)
            if found is not None and len(found.spans) == len(truth):
                starts += list(found.spans[:, 0] - truth)
                ends += list(found.spans[:-1, 1] - truth[1:])
    for name, differences in (("start", starts), ("end", ends)):
        errors = np.array(differences)[np.isfinite(differences)]
        print(
            f"{name}: {len(errors)} words, mean error {np.abs(errors).mean():.3f} s,"
            f" median {np.median(np.abs(errors)):.3f} s,"
            f" 95 % within {np.percentile(np.abs(errors), 95):.3f} s, bias {errors.mean():+.3f} s"
        )


if __name__ == "__main__":
    app.run(main)
