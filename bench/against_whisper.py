"""A Whisper here beside `transformers` and faster-whisper: the same text, and how fast.

    python -m bench.against_whisper --model=FOLDER --data=dev.jsonl [--count=20] [--language=en]
        [--pretrained=FOLDER] [--hf_model=HF_FOLDER] [--ct2_model=CT2_FOLDER]
        [--compute_types=float32,int8] [--python=PATH] [--silence=30] [--dtype=bfloat16]
        [--threads=2] [--timestamps] [--heads=M] [--min_probability=0.2]
        [--strategies=verify,verify_ctc] [--draft_width=16] [--draft_model=FOLDER]

Utterances go one by one through every program, each in a process of its own, in turn; the first
one warms up and does not count. Greedy, no voice activity detection; timestamps with
``--timestamps`` only. Of `transformers` the tokens are compared. A model with heads or a CTC head
decodes by verification too: how many of its texts have the tokens of greedy, one token wide, and
how many times fewer calls and less time it takes, the time of a ``--draft_model`` included. Where
tokens differ, the difference of our two greatest logits is printed.
*Decoder* is the time without that of the encoder, which is measured in its turn; a CTC head, which
only drafts, is not of the encoder. WER is that of all
texts under Whisper's normaliser. Programs whose weights are not named are left out. ``--silence``
is what our encoder hears behind an utterance, in seconds, ``--dtype`` the type of our products.
Where the other programs are in another environment, name its interpreter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import wave
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

import mtp_jax.inference.load
from mtp_jax import cli
from mtp_jax.config import Data
from mtp_jax.data import Batch, open_source
from mtp_jax.decoding import Auto, Greedy, Strategy, Verify, drafts, registry
from mtp_jax.evaluation.metrics import word_errors
from mtp_jax.inference.decoder_functions import encode
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.recogniser import Encoded, Recogniser

_MODEL = flags.DEFINE_string("model", None, "a Whisper, or a workdir with heads", required=True)
_PRETRAINED = cli.pretrained_flag()
_DATA = flags.DEFINE_string("data", None, "source of the utterances", required=True)
_COUNT = flags.DEFINE_integer("count", 20, "utterances", lower_bound=2)
_LANGUAGE = flags.DEFINE_string("language", "en", "code of their language")
_HF = flags.DEFINE_string("hf_model", "", "the same weights for transformers")
_CT2 = flags.DEFINE_string("ct2_model", "", "the same weights for faster-whisper")
_TYPES = flags.DEFINE_list("compute_types", ["float32", "int8"], "of faster-whisper")
_PYTHON = flags.DEFINE_string("python", sys.executable, "one that has the other programs")
_SILENCE = flags.DEFINE_float("silence", None, "seconds behind an utterance; default: the model's")
_DTYPE = cli.dtype_flag()
_HEADS = cli.heads_flag()
_DRAFT_MODEL = cli.draft_model_flag()
_LEAST = flags.DEFINE_float(
    "min_probability", drafts.MIN_PROBABILITY, "of all drafts so far, for serial heads to go on"
)
_STRATEGIES = flags.DEFINE_list(
    "strategies", None, "exact ones beside greedy; default: all that the model has"
)
_WIDTH = flags.DEFINE_integer("draft_width", 16, "tokens per call of drafts by CTC", lower_bound=2)
_TIMESTAMPS = flags.DEFINE_bool("timestamps", False, "texts hold times")
_THREADS = flags.DEFINE_integer("threads", 2, "of the other programs", lower_bound=1)

SIDE = pathlib.Path(__file__).with_name("whisper_side.py")


class Side:
    """Another program, in a process of its own."""

    def __init__(self, kind: str, folder: str, language: str) -> None:
        command = [_PYTHON.value, str(SIDE), kind, folder, language, str(_THREADS.value)]
        command += ["timestamps"] if _TIMESTAMPS.value else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(self._process.wait() or 1)
        return dict(json.loads(line))

    def __call__(self, file: pathlib.Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(file, file=self._process.stdin, flush=True)
        return self._read()


def batch_of(wave_: np.ndarray, start: tuple[int, ...]) -> Batch:
    """One utterance, padded to whole steps of 5 s, so that few programs are compiled."""
    step = 5 * 16_000
    audio = np.zeros((1, min(-(-len(wave_) // step) * step, 480_000)), np.int16)
    audio[0, : len(wave_)] = wave_[: audio.shape[1]]
    return Batch(
        audio=audio,
        audio_length=np.array([min(len(wave_), audio.shape[1])], np.int32),
        tokens=np.zeros((1, 0), np.int32),
        token_length=np.zeros(1, np.int32),
        index=np.zeros(1, np.int32),
        start=np.array([start], np.int32),
    )


def ours(runner: Runner, batch: Batch, strategy: Any) -> dict[str, Any]:
    """Seconds, tokens without EOS, text, calls; compilation is not counted."""
    runner.compile(batch, strategy)
    compiling, start = runner.compile_seconds, time.perf_counter()
    done = runner.run(batch, strategy)
    decoded = jax.device_get(done.decoded)
    seconds = time.perf_counter() - start - (runner.compile_seconds - compiling)
    drafter = 0 if done.drafter_calls is None else int(done.drafter_calls[0])
    tokens = decoded.tokens[0, : decoded.length[0]].tolist()
    tokens = tokens[:-1] if tokens and tokens[-1] == runner.tokenizer.eos else tokens
    text = runner.tokenizer.decode(tokens)
    calls = {"calls": int(decoded.calls[0]), "drafter_calls": drafter}
    return {"seconds": seconds, "tokens": tokens, "text": text, **calls}


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Recogniser, params: Any, batch: Batch) -> Encoded:
    encoded = encode(model, params, batch)
    return dataclasses.replace(encoded, ctc_logits=None, ctc_hypothesis=None)


def exact_strategies(runner: Runner) -> dict[str, Strategy]:
    """Greedy, one token wide, and what is asked for; all that drafts by default."""
    heads = runner.model.config.heads.count
    options = registry.Options(heads=heads, draft_width=_WIDTH.value)
    strategies: dict[str, Strategy] = {"greedy": Greedy()}
    for name in runner.strategies if _STRATEGIES.value is None else _STRATEGIES.value:
        entry = registry.get(name)
        strategy = entry.make(options)
        if isinstance(strategy, Verify | Auto) and (heads > 1 or not entry.needs_heads):
            strategies[name] = dataclasses.replace(strategy, min_probability=_LEAST.value)
    return strategies


def encoder_seconds(runner: Runner, batch: Batch) -> float:
    """Of all before the decoder; compilation is not counted."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(_encode(runner.model, runner.params, batch))
        seconds = time.perf_counter() - start
    return seconds


def text_only(tokens: list[int], start: tuple[int, ...], eos: int) -> list[int]:
    """Without the tokens before the text, if they are there, and without EOS."""
    if tokens[: len(start)] == list(start):
        tokens = tokens[len(start) :]
    return [token for token in tokens if token != eos]


def print_divergence(
    runner: Runner, batch: Batch, name: str, mine: list[int], theirs: list[int]
) -> None:
    """Prints the difference of the two greatest logits where two texts part, if they do."""
    if mine == theirs:
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
        min(len(mine), len(theirs)),
    )
    gap = runner.top2_gap(batch, 0, tuple(mine[:at]))
    print(f"{name}: tokens part at {at}, logits differ by {gap:.4f}", flush=True)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    runner = mtp_jax.inference.load.load(
        open_model_folder(_MODEL.value),
        pretrained=_PRETRAINED.value,
        silence=_SILENCE.value,
        dtype=_DTYPE.value,
        heads=_HEADS.value,
        timestamps=_TIMESTAMPS.value,
        draft_model=_DRAFT_MODEL.value or "",
    )
    special = runner.model.vocabulary.whisper
    assert special is not None
    language = _LANGUAGE.value if special.languages else ""
    start = special.start_tokens(language)
    source = open_source(_DATA.value, Data(bucket_seconds=(30.0,)), 16_000)
    strategies = exact_strategies(runner)
    sides: dict[str, Side] = {}
    if _HF.value:
        sides["transformers"] = Side("transformers", _HF.value, language)
    for kind in _TYPES.value if _CT2.value else ():
        sides[f"faster_whisper {kind}"] = Side(f"faster_whisper/{kind}", _CT2.value, language)
    seconds: dict[str, list[float]] = {name: [] for name in (*strategies, *sides)}
    texts: dict[str, list[str]] = {name: [] for name in seconds}
    calls, drafter_calls = (dict.fromkeys(strategies, 0) for _ in range(2))
    identical = dict.fromkeys(strategies, 0)
    audio, same, encoding = [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(min(_COUNT.value, len(source.utterances))):
            wave_ = source.waveform(i)
            file = pathlib.Path(folder) / f"{i}.wav"
            with wave.open(str(file), "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(16_000)
                out.writeframes(wave_.tobytes())
            batch = batch_of(wave_, start)
            audio.append(len(wave_) / 16_000)
            if not i:  # what measures its calls does so at its fourth run
                for strategy in (*strategies.values(),) * 4:
                    ours(runner, batch, strategy)
            found = {name: ours(runner, batch, s) for name, s in strategies.items()}
            found |= {name: side(file) for name, side in sides.items()}
            for name, result in found.items():
                if "text" not in result:
                    result["tokens"] = text_only(result["tokens"], start, runner.tokenizer.eos)
                    result["text"] = runner.tokenizer.decode(result["tokens"])
                seconds[name].append(result["seconds"])
                texts[name].append(result["text"])
            for name in strategies:
                calls[name] += found[name]["calls"]
                drafter_calls[name] += found[name]["drafter_calls"]
            greedy_tokens = found["greedy"]["tokens"]
            for name in strategies:
                identical[name] += found[name]["tokens"] == greedy_tokens
                where = f"{source.utterances[i].id} {name}"
                print_divergence(runner, batch, where, greedy_tokens, found[name]["tokens"])
            if len(strategies) > 1 and i:
                encoding += encoder_seconds(runner, batch)
            if "transformers" in found:
                mine, theirs = found["greedy"]["tokens"], found["transformers"]["tokens"]
                same += mine == theirs
                print_divergence(runner, batch, source.utterances[i].id, mine, theirs)
    if "transformers" in sides:
        print(f"greedy tokens equal to transformers': {same} of {len(audio)}")
    for name in [*strategies][1:]:
        greedy, verify = (sum(seconds[x][1:]) for x in ("greedy", name))
        print(
            f"{name}: tokens equal to greedy's {identical[name]} of {len(audio)},"
            f" {calls['greedy'] / calls[name]:.2f}x fewer calls,"
            f" {greedy / verify:.2f}x as fast,"
            f" decoder {(greedy - encoding) / (verify - encoding):.2f}x"
        )
    normalizer = "english" if language in ("", "en") else "basic"
    truth = [utterance.text for utterance in source.utterances[: len(audio)]]
    for name in seconds:
        wer = word_errors(truth, texts[name], normalizer).percent
        rtfx = sum(audio[1:]) / sum(seconds[name][1:])
        extra = f", {calls[name]} calls" if name in calls else ""
        extra += f", {drafter_calls[name]} of the drafter" if drafter_calls.get(name) else ""
        print(f"{name}: RTFx {rtfx:.2f}, WER {wer:.2f} %{extra}")


if __name__ == "__main__":
    app.run(main)
