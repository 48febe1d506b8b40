"""What one decoding gets wrong, and what it makes of another's errors.

    python -m bench.errors runs/m4/hypotheses/greedy_width1_batch8.jsonl \\
        [--before=runs/m4/hypotheses/ctc_batch8.jsonl] [--train=SOURCE] [--examples=10]

Prints substitutions, deletions and insertions; how many wrong words are a letter or two away; with
``--train`` the errors on words that were never read in training; with ``--before`` (what CTC reads,
or another model of the same test set) how many of its errors are mended and how many new ones are
made; and examples, evenly from the worst to the best of those that have an error.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator

import jiwer
from absl import app, flags

from mtp_jax.config import Data
from mtp_jax.data import open_source
from mtp_jax.evaluation.metrics import normalizer

_BEFORE = flags.DEFINE_string("before", "", "hypotheses to compare with")
_TRAIN = flags.DEFINE_string("train", "", "the source that the model was trained on")
_EXAMPLES = flags.DEFINE_integer("examples", 10, "that are printed")
_NORMALIZER = flags.DEFINE_string("normalizer", "english", "english, basic or none")


def read(file: str) -> dict[str, tuple[str, str]]:
    """Reference and text of each utterance, normalised; those without a reference are left out."""
    clean = normalizer(_NORMALIZER.value)
    lines = [json.loads(line) for line in pathlib.Path(file).read_text().splitlines()]
    pairs = {line["id"]: (clean(line["reference"]), clean(line["text"])) for line in lines}
    return {name: pair for name, pair in pairs.items() if pair[0]}


def aligned(reference: str, text: str) -> Iterator[tuple[str, str]]:
    """Pairs of words; the first is empty at an insertion, the second at a deletion."""
    ours, theirs = reference.split(), text.split()
    for chunk in jiwer.process_words(reference, text).alignments[0]:
        left = ours[chunk.ref_start_idx : chunk.ref_end_idx]
        right = theirs[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "insert":
            yield from (("", word) for word in right)
        elif chunk.type == "delete":
            yield from ((word, "") for word in left)
        else:
            yield from zip(left, right, strict=True)


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"


def letters_away(a: str, b: str) -> int:
    out = jiwer.process_characters(a, b)
    return out.substitutions + out.deletions + out.insertions


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("give one file of hypotheses")
    found = read(argv[1])
    pairs = {name: list(aligned(*pair)) for name, pair in found.items()}
    flat = [pair for each in pairs.values() for pair in each]
    words = sum(bool(a) for a, _ in flat)
    swapped = [(a, b) for a, b in flat if a and b and a != b]
    gone, added = sum(not b for _, b in flat), sum(not a for a, _ in flat)
    errors = len(swapped) + gone + added
    print(f"WER {100 * errors / words:.2f} %: {share(errors, words)} words")
    print(f"  substituted {len(swapped)}, deleted {gone}, inserted {added}")
    near = Counter(min(letters_away(a, b), 3) for a, b in swapped)
    print(f"  substituted by a word one letter away: {share(near[1], len(swapped))}")
    print(f"  two letters away: {share(near[2], len(swapped))}")
    print("  most often:", "; ".join(f"{a} > {b}" for (a, b), _ in Counter(swapped).most_common(8)))
    if _TRAIN.value:
        clean = normalizer(_NORMALIZER.value)
        source = open_source(_TRAIN.value, Data(bucket_seconds=(3600.0,)), 16_000)
        known = {word for u in source.utterances for word in clean(u.text).split()}
        for name, which in (("read in training", True), ("never read in training", False)):
            some = [(a, b) for a, b in flat if a and (a in known) == which]
            print(f"  wrong among words {name}: {share(sum(a != b for a, b in some), len(some))}")
    if _BEFORE.value:
        before = read(_BEFORE.value)
        mended = broken = both = 0
        for name, each in pairs.items():
            # A reference word is at the same place in both alignments.
            old = [b for a, b in aligned(*before[name]) if a]
            new = [(a, b) for a, b in each if a]
            for (word, now), then in zip(new, old, strict=True):
                mended += then != word == now
                broken += then == word != now
                both += then != word != now
        print(f"  of {mended + both} wrong words of {_BEFORE.value}: {mended} mended")
        print(f"  of {words - mended - both} right ones: {broken} made wrong")
    wrong = sorted(
        (name for name, each in pairs.items() if any(a != b for a, b in each)),
        key=lambda name: -sum(a != b for a, b in pairs[name]) / max(len(pairs[name]), 1),
    )
    print(f"utterances without an error: {share(len(pairs) - len(wrong), len(pairs))}")
    count = min(_EXAMPLES.value, len(wrong))
    for i in range(count):
        name = wrong[i * (len(wrong) - 1) // max(count - 1, 1)]
        print(f"\n{name}\n  reference  {found[name][0]}\n  recognised {found[name][1]}")


if __name__ == "__main__":
    sys.exit(app.run(main))
