"""Where drafts fail: how often each head names greedy's token, by the token's place in its word.

    python -m bench.drafts --workdir=runs/mtp [--data=more.jsonl] [--batch_size=8]
        [--output=docs/images/drafts.png] [--words=10]

Every head is asked at every position of greedy's output, one teacher-forced pass an utterance. A
draft is judged at the token it is for, whether or not the drafts before it were right. Prints the
shares as a table, and the words whose drafts fail most.
"""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags, logging

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.data import Batch, open_source
from mtp_jax.decoding import Greedy
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.evaluation.task import Task
from mtp_jax.inference.load import load
from mtp_jax.inference.runner import Runner
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.models.speech_features import speech_features
from mtp_jax.tokenizer import Tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "a trained model", required=True)
_DATA = flags.DEFINE_string("data", "", "a source; default: the workdir's test set")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "utterances a batch")
_OUTPUT = flags.DEFINE_string("output", "", "a PNG file")
_WORDS = flags.DEFINE_integer("words", 10, "that are printed")

PLACES = ("1st of its word", "2nd", "3rd", "4th or later", "end of the text")


@functools.partial(jax.jit, static_argnums=0)
def drafts(
    model: Recogniser, params: Any, batch: Batch, tokens: jax.Array, length: jax.Array
) -> jax.Array:
    """int32[B, L, M], what head m says at each position of int32[B, L] `tokens`."""
    features, frames = speech_features(model, params, batch)
    hidden, _ = call(Recogniser.__call__, model, params, features, frames, tokens, length)
    return jnp.argmax(call(Recogniser.all_logits, model, params, hidden), axis=-1)


def places(tokenizer: Tokenizer, tokens: tuple[int, ...]) -> tuple[list[int], list[str]]:
    """The place of each token, as a number of `PLACES`, and the word that it is part of."""
    found: list[int] = []
    starts: list[int] = []
    for i, token in enumerate(tokens):
        if token == tokenizer.eos:
            found.append(len(PLACES) - 1)
            starts.append(i)
            continue
        if i == 0 or tokenizer.pieces[token].startswith(("▁", "Ġ", " ")):
            starts.append(i)
        else:
            starts.append(starts[-1])
        found.append(min(i - starts[-1], len(PLACES) - 2))
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for token, start in zip(tokens, starts, strict=True):
        groups[start].append(token)
    words = {start: tokenizer.decode(group).strip() for start, group in groups.items()}
    return found, [words[start] for start in starts]


def judged(
    runner: Runner, batches: Iterator[Batch], texts: dict[int, tuple[int, ...]]
) -> Iterator[tuple[int, int, str, bool]]:
    """(head, place, word, right) of every draft for a token of `texts`."""
    model, tokenizer = runner.model, runner.tokenizer
    for batch in batches:
        rows = [texts.get(int(index), ()) for index in batch.index]
        width = -(-max(len(row) for row in rows) // 32) * 32  # fewer shapes to compile
        tokens = np.zeros((len(rows), width), np.int32)
        for row, text in enumerate(rows):
            tokens[row, : len(text)] = text
        lengths = np.array([len(row) for row in rows], np.int32)
        bare = runner.place(batch._replace(tokens=batch.tokens[:, :0]))
        said = np.asarray(drafts(model, runner.params, bare, tokens, lengths))
        for row, text in enumerate(rows):
            place, word = places(tokenizer, text)
            for i, token in enumerate(text):
                for head in range(1, min(model.config.heads.count, i + 1) + 1):
                    right = said[row, i - head + 1, head - 1] == token
                    yield head, place[i], word[i], bool(right)


def picture(share: np.ndarray, file: pathlib.Path) -> None:
    """`share`: [places, heads - 1] of heads 2..M."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    heads = np.arange(2, share.shape[1] + 2)
    for name, line in zip(PLACES, share, strict=True):
        axes.plot(heads, 100 * line, "o-", label=name)
    axes.set_xlabel("head")
    axes.set_ylabel("drafts that are greedy's token, %")
    axes.set_xticks(heads)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(title="the token's place")
    figure.savefig(file, dpi=150)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    runner = load(Workdir(_WORKDIR.value))
    config = runner.model.config
    source = open_source(_DATA.value or config.data.test, config.data, config.front_end.sample_rate)
    task = Task.of(source, runner)
    outcome = decode_source(runner, source, task.batches(_BATCH_SIZE.value), Greedy())
    by_id = {h.id: h.tokens for h in outcome.hypotheses}
    texts = {i: by_id[u.id] for i, u in enumerate(source.utterances) if u.id in by_id}
    count = config.heads.count
    right, total = np.zeros((2, len(PLACES), count + 1))
    failed: collections.Counter[str] = collections.Counter()
    for head, place, word, ok in judged(runner, task.batches(_BATCH_SIZE.value), texts):
        right[place, head] += ok
        total[place, head] += 1
        if head > 1 and not ok and word:
            failed[word] += 1
    share = right[:, 1:] / np.maximum(total[:, 1:], 1)
    print("| the token's place | tokens |" + "".join(f" head {m + 1} |" for m in range(count)))
    print("|" + "---|" * (2 + count))
    for name, number, line in zip(PLACES, total[:, 1], share, strict=True):
        print(f"| {name} | {number:.0f} |" + "".join(f" {100 * x:.0f} % |" for x in line))
    whole = right[:, 1:].sum(0) / np.maximum(total[:, 1:].sum(0), 1)
    print(f"| all | {total[:, 1].sum():.0f} |" + "".join(f" {100 * x:.0f} % |" for x in whole))
    print("failed drafts:", ", ".join(f"{w} {n}" for w, n in failed.most_common(_WORDS.value)))
    if _OUTPUT.value and count > 1:
        picture(share[:, 1:], pathlib.Path(_OUTPUT.value))
        print(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
