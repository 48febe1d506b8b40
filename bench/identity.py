"""Whether every exact strategy writes greedy's tokens, over thousands of utterances of all kinds.

    python -m bench.identity --model=DIR --data=FOLDER --output=FILE [--count=10000]
        [--pretrained=FOLDER] [--dtype=float32] [--seconds=7] [--max_tokens=0] [--sizes=4,32]
        [--seed=0]

FOLDER holds manifests of real speech (``*.jsonl``). Utterances of `bench.utterances` are decoded
in batches of 1 to the largest of --sizes rows, every other one as large as can be, and padded to
the next of these sizes (each is a program of each strategy): by greedy decoding at each width, and
by every exact strategy that the model has, with drafts of its heads, of its CTC head, of both, of a
text (greedy's own, with errors put in: 0 to 100 % of the tokens), and by `auto` at several costs of
a wide call. Compared, token for token:

- each strategy with greedy decoding of its own width: there every difference is a fault. `auto`
  mixes widths, and has no one that it could be compared with;
- all of them with greedy decoding one token wide: where tokens part, the difference of the two best
  logits at that place is noted. A difference of rounding errors is no fault (--largest_gap, which
  is meant for float32: bfloat16 has larger ones);
- two rows of each batch with their own runs, alone, by greedy decoding and by one other strategy.

What a batch gave is appended to FILE, and a command that was killed goes on behind the last whole
line. The summary is of all lines; the exit status is 1 if there is a fault.

What a pretrained encoder makes of a batch is made once; every strategy then begins there.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

import mtp_jax.inference.load
from bench.utterances import RATE, Utterance, Utterances, with_errors
from mtp_jax import cli
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.decoding import Auto, Greedy, Strategy, Verify, registry
from mtp_jax.decoding.pace import Pace
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.speech_features import speech_features

_MODEL = flags.DEFINE_string("model", None, "a workdir, an export or a Whisper", required=True)
_PRETRAINED = cli.pretrained_flag()
_DTYPE = cli.dtype_flag()
_DATA = flags.DEFINE_string("data", None, "folder of manifests", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "file of results, appended to", required=True)
_COUNT = flags.DEFINE_integer("count", 10_000, "utterances", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 7.0, "of the longest utterance", lower_bound=0.5)
_LIMIT = flags.DEFINE_integer("max_tokens", 0, "of a text; 0: as the model", lower_bound=0)
_SIZES = flags.DEFINE_list("sizes", ["4", "32"], "rows that batches are padded to")
_WIDTH = flags.DEFINE_integer("draft_width", 16, "tokens per call, of text drafts", lower_bound=2)
_GAP = flags.DEFINE_float("largest_gap", 0.01, "of two logits, that rounding errors may explain")
_SEED = flags.DEFINE_integer("seed", 0, "of all that is drawn")

RATES = (0.0, 0.05, 0.2, 0.5, 1.0)  # of errors in the texts that are drafts
ALONE = 2  # rows of a batch that are decoded alone, too
COSTS = (1.0, 1.5, 3.0, math.inf)  # of a wide call, for `auto`


@dataclasses.dataclass(frozen=True)
class Tried:
    """A strategy as it is tried.

    Attributes:
        name: for the table.
        strategy: what decodes.
        width: tokens per call, of the greedy decoding that it equals; 0 if it has no one width.
        drafted: whether the batch holds a text to draft by.
    """

    name: str
    strategy: Strategy
    width: int
    drafted: bool = False


def exact_strategies(runner: Runner, width: int) -> list[Tried]:
    """Every exact strategy of the model with every kind of drafts."""
    heads, found = runner.model.config.heads.count, []
    options = registry.Options(heads=heads, draft_width=width)
    for name in runner.strategies:
        entry = registry.get(name)
        if not entry.exact or name == "greedy" or (heads == 1 and entry.needs_heads):
            continue
        for variant in entry.variants(options):
            mixed = isinstance(variant.strategy, Auto)
            found.append(Tried(name, variant.strategy, 0 if mixed else variant.width))
    found.append(Tried("verify_text", Verify(width), width, True))
    if heads > 1:
        found.append(Tried("verify_joint_text", Verify(width, joint=True), width, True))
    found.append(Tried("auto_text", Auto(width), 0, True))
    return found


class Decoder:
    """Decodes batches of utterances by any strategy; the pretrained encoder runs once for each.

    Args:
        runner: the model.
        seconds: of the longest utterance.
        limit: tokens of a text, at most.
    """

    def __init__(self, runner: Runner, seconds: float, limit: int) -> None:
        self._runner, self._samples = runner, round(seconds * RATE)
        self.limit = min(limit or math.inf, runner.model.config.data.max_tokens)
        c = runner.model.config
        self._encodes = c.whisper.present or c.speech_llm.present
        self._features = jax.jit(functools.partial(speech_features, runner.model))

    def batch(self, waves: list[np.ndarray], rows: int) -> Batch:
        """The batch, padded to so many rows."""
        audio = np.zeros((rows, self._samples), np.int16)
        length = np.zeros(rows, np.int32)
        for row, wave in enumerate(waves):
            audio[row, : len(wave)], length[row] = wave, len(wave)
        batch = Batch(
            audio=audio,
            audio_length=length,
            tokens=np.zeros((rows, 0), np.int32),
            token_length=np.zeros(rows, np.int32),
            index=np.where(np.arange(rows) < len(waves), np.arange(rows), -1).astype(np.int32),
        )
        if not self._encodes:
            return batch
        features, _ = self._features(self._runner.params, batch)
        return FeatureBatch(**batch._replace(audio=np.asarray(features, np.float16))._asdict())

    def tokens(self, batch: Batch, strategy: Strategy) -> tuple[list[tuple[int, ...]], int]:
        """Tokens of each real row, EOS included, and decoder calls of all."""
        decoded = jax.device_get(self._runner.run_once(batch, strategy, self.limit).decoded)
        rows = np.flatnonzero(batch.index >= 0).tolist()
        texts = [tuple(decoded.tokens[row, : decoded.length[row]].tolist()) for row in rows]
        return texts, int(decoded.calls[rows].sum())


def agreed(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two texts begin with alike."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    return same.index(False) if False in same else len(same)


def decode(
    runner: Runner,
    decoder: Decoder,
    strategies: list[Tried],
    utterances: list[Utterance],
    sizes: list[int],
    draw: np.random.Generator,
) -> dict[str, Any]:
    """What all strategies make of a batch, compared."""
    waves = [utterance.audio for utterance in utterances]
    batch = decoder.batch(waves, next(size for size in sizes if size >= len(waves)))
    widths = sorted({1} | {tried.width for tried in strategies if tried.width})
    greedy = {width: decoder.tokens(batch, Greedy(width)) for width in widths}
    alphabet = sorted({token for text in greedy[1][0] for token in text[:-1]}) or [0]
    rates = [float(draw.choice(RATES)) for _ in waves]
    drafts = [
        with_errors(text[:-1], rate, alphabet, draw)
        for text, rate in zip(greedy[1][0], rates, strict=True)
    ]
    drafted = batch.with_drafts(drafts, decoder.limit)
    found: dict[str, Any] = {}
    differences = []

    def compare(name: str, against: str, row: int, texts: tuple[tuple[int, ...], ...]) -> bool:
        ours, theirs = texts
        if ours == theirs:
            return True
        place = agreed(ours, theirs)
        gap = runner.top2_gap(batch, row, ours[:place])
        utterance = utterances[row].name
        differences.append(
            {"strategy": name, "against": against, "id": utterance, "position": place, "gap": gap}
        )
        return False

    for width in widths[1:]:
        for row, texts in enumerate(zip(greedy[width][0], greedy[1][0], strict=True)):
            compare(f"greedy, {width} wide", "1-wide greedy", row, texts)
    made = {}
    for tried in strategies:
        strategy = tried.strategy
        if isinstance(strategy, Auto):
            pace = Pace.of(float(draw.choice(COSTS)))
            strategy = dataclasses.replace(strategy, pace=pace)
        texts, calls = decoder.tokens(drafted if tried.drafted else batch, strategy)
        made[tried.name] = texts
        same = narrow = 0
        for row, text in enumerate(texts):
            narrow += compare(tried.name, "1-wide greedy", row, (text, greedy[1][0][row]))
            if tried.width:
                wide = greedy[tried.width][0][row]
                same += compare(tried.name, "greedy of its width", row, (text, wide))
        found[tried.name] = {"rows": len(texts), "calls": calls, "1-wide greedy": narrow}
        found[tried.name] |= {"greedy of its width": same} if tried.width else {}
    own = 0
    widest = max((t for t in strategies if not t.drafted), key=lambda tried: tried.width)
    for row in draw.permutation(len(waves))[:ALONE].tolist():
        alone = decoder.batch([waves[row]], 1)
        for name, strategy, texts in (
            ("greedy", Greedy(), greedy[1][0]),
            (widest.name, widest.strategy, made[widest.name]),
        ):
            text = decoder.tokens(alone, strategy)[0][0]
            own += compare(name, "its own run", row, (text, texts[row]))
    return {
        "kinds": [utterance.kind for utterance in utterances],
        "corpora": [utterance.corpus for utterance in utterances],
        "size": len(batch.index),
        "tokens": sum(map(len, greedy[1][0])),
        "greedy_calls": greedy[1][1],
        "seconds": round(sum(map(len, waves)) / RATE, 2),
        "strategies": found,
        "alone": {"rows": 2 * min(ALONE, len(waves)), "same": own},
        "differences": differences,
    }


def begin(file: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The batches that a file of results holds, of which a line that was cut off is removed."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings) + "\n")
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.write_bytes(whole)
    first, *lines = (json.loads(line) for line in whole.splitlines())
    if first != settings:
        raise SystemExit(f"{file} is of {first}, not of {settings}: name another --output")
    return lines


def summary(batches: list[dict[str, Any]]) -> int:
    """Prints what all batches gave; returns the number of faults."""
    rows = sum(len(batch["kinds"]) for batch in batches)
    kinds = collections.Counter(kind for batch in batches for kind in batch["kinds"])
    corpora = collections.Counter(name for batch in batches for name in batch["corpora"])
    hours = sum(batch["seconds"] for batch in batches) / 3600
    tokens = sum(batch["tokens"] for batch in batches)
    print(f"{rows} utterances, {hours:.2f} hours, {tokens} tokens, in {len(batches)} batches")
    print("kinds: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    print("of: " + ", ".join(f"{name} {count}" for name, count in corpora.most_common()))
    greedy = sum(batch["greedy_calls"] for batch in batches)
    faults = 0
    for name in batches[0]["strategies"] if batches else ():
        each = [batch["strategies"][name] for batch in batches]
        total = {key: sum(one[key] for one in each) for key in each[0]}
        wide = total.get("greedy of its width")
        faults += 0 if wide is None else total["rows"] - wide
        same = "no one width" if wide is None else f"{wide} of {total['rows']}"
        print(
            f"{name}: as greedy of its width {same}; as 1-wide greedy"
            f" {total['1-wide greedy']} of {total['rows']};"
            f" {greedy / total['calls']:.2f}x fewer calls"
        )
    alone, same = (sum(batch["alone"][key] for batch in batches) for key in ("rows", "same"))
    print(f"rows as their own runs: {same} of {alone}")
    found = [each for batch in batches for each in batch["differences"]]
    parted = {(each["id"], each["position"]): each["gap"] for each in found}
    if parted:
        gaps = sorted(parted.values())
        print(
            f"texts part at {len(parted)} places, where the two best logits differ by"
            f" {gaps[0]:.1e} to {gaps[-1]:.1e}, median {gaps[len(gaps) // 2]:.1e}"
        )
    for each in found:
        if each["gap"] > _GAP.value or each["against"] == "greedy of its width":
            faults += each["against"] != "greedy of its width"  # those are counted already
            print(f"FAULT {each}")
    print(f"{faults} faults")
    return faults


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    folder = open_model_folder(_MODEL.value)
    cli.start_jax(folder.read_config())
    runner = mtp_jax.inference.load.load(folder, pretrained=_PRETRAINED.value, dtype=_DTYPE.value)
    utterances = Utterances(Path(_DATA.value), _SECONDS.value, _SEED.value)
    decoder = Decoder(runner, _SECONDS.value, _LIMIT.value)
    strategies = exact_strategies(runner, _WIDTH.value)
    sizes = sorted(map(int, _SIZES.value))
    settings = {
        "model": _MODEL.value,
        "dtype": runner.model.config.train.dtype,
        "seconds": _SECONDS.value,
        "max_tokens": decoder.limit,
        "sizes": sizes,
        "draft_width": _WIDTH.value,
        "seed": _SEED.value,
    }
    output = Path(_OUTPUT.value)
    batches = begin(output, settings)
    done = sum(len(batch["kinds"]) for batch in batches)
    start = time.monotonic()
    while done < _COUNT.value:
        draw = np.random.default_rng([_SEED.value, 1, len(batches)])
        rows = sizes[-1] if draw.random() < 0.5 else int(draw.integers(1, sizes[-1] + 1))
        rows = min(rows, _COUNT.value - done)
        chosen = [utterances[done + i] for i in range(rows)]
        batches.append(decode(runner, decoder, strategies, chosen, sizes, draw))
        with output.open("a") as file:
            file.write(json.dumps(batches[-1]) + "\n")
        done += rows
        differ = len(batches[-1]["differences"])
        print(
            f"{done} after {time.monotonic() - start:.0f} s, {differ} differences", file=sys.stderr
        )
    sys.exit(bool(summary(batches)))


if __name__ == "__main__":
    app.run(main)
