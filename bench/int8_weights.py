"""What int8 weights change: texts, errors, the time of a call, bytes.

    python -m bench.int8_weights --model=models/whisper-base [--pretrained=FOLDER] --data=SOURCE
        [--count=40] [--silence=3] [--strategies=greedy,verify] [--timed=4]
    python -m bench.int8_weights --decoder=FILE.gguf --text=FILE [--positions=256]
    python -m bench.int8_weights --products=1,8

The first decodes the first --count utterances one at a time, with the weights as they are and in
int8. *Differ* counts the texts that are not those of the first row, after the normaliser that WER
has too. A call's time is that of the whole program, less that of the program that stops at the
first token, over the calls between them, of the --timed longest utterances: seconds of the CPU, so
that other work on the machine counts little, and the least of three turns. The second feeds a text
to a LLaMA, in pieces of --positions tokens, and compares what it says follows. The third times the
products of a call of Whisper base alone, for so many rows: 12 of 512 x 2048, and those of the LM
head.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mtp_jax.config import Decoder, Lora
from mtp_jax.data import Batch, eval_batches, open_source
from mtp_jax.decoding import Strategy
from mtp_jax.evaluation.metrics import word_errors
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.int8_weights import KINDS, in_int8, leaf_in_int8
from mtp_jax.models.layers import TRANSPOSED
from mtp_jax.models.mixed_precision import matmul_transposed
from mtp_jax.planning.programs import strategy_of
from mtp_jax.pretrained.llama import import_llama, llama_architecture
from mtp_jax.tokenizer import Tokenizer

_MODEL = flags.DEFINE_string("model", None, "a workdir, an export, a Whisper or a speech LLM")
_PRETRAINED = flags.DEFINE_string("pretrained", "", "where what it leaves out lies")
_DATA = flags.DEFINE_string("data", None, "source with transcripts")
_COUNT = flags.DEFINE_integer("count", 40, "utterances, the first", lower_bound=1)
_SILENCE = flags.DEFINE_float("silence", None, "of a Whisper, as of mtp_jax.evaluate")
_DTYPE = flags.DEFINE_string("dtype", "", "as of mtp_jax.evaluate")
_STRATEGIES = flags.DEFINE_list("strategies", ["greedy"], "that decode")
_TIMED = flags.DEFINE_integer("timed", 4, "utterances whose calls are timed")
_DECODER = flags.DEFINE_string("decoder", None, "a LLaMA, in GGUF or a folder")
_TEXT = flags.DEFINE_string("text", None, "a file that it reads")
_PRODUCTS = flags.DEFINE_list("products", [], "rows of the products that are timed")
_POSITIONS = flags.DEFINE_integer("positions", 256, "tokens that it sees at once", lower_bound=2)


def megabytes(params: Any) -> float:
    """Of the parameters of decoder and heads."""
    own = {name: params[name] for name in ("decoder", "heads") if name in params}
    return sum(x.nbytes for x in jax.tree.leaves(own)) / 1e6


def call_milliseconds(runner: Runner, batch: Batch, strategy: Strategy) -> float:
    """CPU time of a decoder call."""

    def least(run: Any) -> tuple[float, int]:
        found, calls = float("inf"), 0
        for turn in range(4):  # the first compiles
            start = time.process_time()
            done = jax.block_until_ready(run().decoded)
            calls = int(done.calls.max())
            found = min(found, time.process_time() - start) if turn else found
        return found, calls

    whole, calls = least(lambda: runner.run(batch, strategy))
    once, first = least(lambda: runner.run_once(batch, strategy, 1))
    return 1000 * (whole - once) / max(1, calls - first)


def compare_recognisers() -> None:
    """Prints a row for each strategy and kind of weights."""
    texts: dict[str, list[str]] = {}
    print("weights strategy   WER %  differ  calls  ms/call  MB of decoder and heads")
    for weights in KINDS:
        folder = open_model_folder(_MODEL.value)
        runner = load(
            folder,
            pretrained=_PRETRAINED.value,
            silence=_SILENCE.value,
            dtype=_DTYPE.value,
            weights=weights,
        )
        c = runner.model.config
        source = open_source(_DATA.value, c.data, c.front_end.sample_rate)
        source = source.subset(range(min(_COUNT.value, len(source.utterances))))
        batches = list(eval_batches(source, runner.tokenizer, c, 1))  # the shortest first
        for name in _STRATEGIES.value:
            strategy = strategy_of(c, name)
            found = decode_source(runner, source, batches, strategy)
            normalizer = c.evaluation.normalizer
            wer = word_errors(found.references, found.texts, normalizer).percent
            before = texts.setdefault(name, found.texts)
            changed = word_errors(before, found.texts, normalizer).errors
            timed = [call_milliseconds(runner, b, strategy) for b in batches[-_TIMED.value :]]
            print(
                f"{weights or c.train.dtype:8}{name:9}{wer:7.2f} {sum(map(bool, changed)):7d}"
                f" {found.calls:6d} {np.mean(timed):8.2f} {megabytes(runner.params):8.1f}",
                flush=True,
            )
            for old, new in zip(before, found.texts, strict=True):
                if old != new:
                    print(f"    {old}\n  > {new}")
        del runner
        gc.collect()


def pieces(tokens: list[int], bos: int | None) -> Iterator[np.ndarray]:
    """int32[1, --positions] parts of a text, each behind the token that begins one."""
    start = [] if bos is None else [bos]
    size = _POSITIONS.value - len(start)
    for at in range(0, len(tokens) - size + 1, size):
        yield np.array([[*start, *tokens[at : at + size]]], np.int32)


def compare_decoders() -> None:
    """Prints how often the likeliest next token is another, and the perplexities."""
    path = Path(_DECODER.value)
    source = llama_architecture(path)
    model = Llama(Decoder(**vars(source.config)), source.vocab_size)
    zeros = jnp.zeros((1, 1, source.config.width)), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *zeros)["params"])
    params = import_llama(path, jax.tree.map(lambda x: x, _unboxed(shapes)))
    tokens = list(Tokenizer.load(path).encode(Path(_TEXT.value).read_text()))
    laid_out = for_decoding({"decoder": params}, Lora())
    by_weights = {"float32": laid_out, "int8": in_int8(laid_out)}

    @jax.jit
    def log_probs(params: Any, tokens: jax.Array) -> jax.Array:
        own = {"params": params["decoder"]}
        x = model.apply(own, tokens, method="embed")
        hidden, _ = model.apply(own, x, jnp.ones(tokens.shape, bool))
        logits = model.apply(own, hidden, method="unembed")
        return jax.nn.log_softmax(logits)[0]

    found: dict[str, list[np.ndarray]] = {name: [] for name in by_weights}
    agree, divergence, follows = [], [], []
    for piece in pieces(tokens, source.bos):
        p, q = (np.asarray(log_probs(tree, piece)) for tree in by_weights.values())
        for name, x in zip(by_weights, (p, q), strict=True):
            found[name].append(np.take_along_axis(x[:-1], piece[0, 1:, None], -1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        divergence.append(np.sum(np.exp(p) * (p - q), axis=-1))
        follows.append(np.exp(np.sort(p, axis=-1)[:, -1] - np.sort(p, axis=-1)[:, -2]))
    same, ratio = np.concatenate(agree), np.concatenate(follows)
    print(f"{len(same)} positions of {path.name}: {same.mean():.4f} have the same next token")
    print(f"mean KL divergence {np.concatenate(divergence).mean():.6f} nats")
    if not same.all():
        others = ratio[~same]
        print(f"where it is another, the best was {np.median(others):.3f} times as likely as the")
        print(f"second (median; at most {others.max():.3f}; over all {np.median(ratio):.3f})")
    for name, tree in by_weights.items():
        nats = -np.concatenate(found[name]).mean()
        print(f"{name}: perplexity {np.exp(nats):.4f}, {megabytes(tree):.1f} MB")


def compare_products() -> None:
    """Prints CPU milliseconds of a chain of products by the type of the kernels."""
    width, wide, count, tokens, turns = 512, 2048, 12, 51_865, 10
    rng = np.random.default_rng(0)
    shapes = {
        f"decoder/{i}/{TRANSPOSED}": ((wide, width), (width, wide))[i % 2] for i in range(count)
    }
    shapes["decoder/embedding"] = (tokens, width)
    floats = {
        path: jnp.asarray(rng.normal(size=shape) / shape[1] ** 0.5, jnp.float32)
        for path, shape in shapes.items()
    }
    kinds = {
        "float32": floats,
        "int8": {path: leaf_in_int8(path, x) for path, x in floats.items()},
    }

    def call(state: Any, kernels: Any) -> Any:
        n, x, total = state
        *layers, head = kernels
        for kernel in layers:
            x = jnp.tanh(matmul_transposed(x, kernel))
        return n + 1, x, total + jnp.argmax(matmul_transposed(x, head), axis=-1).sum()

    @jax.jit
    def loop(kernels: Any, x: jax.Array) -> Any:
        start = jnp.int32(0), x, jnp.int32(0)
        return jax.lax.while_loop(lambda s: s[0] < turns, lambda s: call(s, kernels), start)

    for rows in map(int, _PRODUCTS.value):
        found = []
        for name, kernels in kinds.items():
            given = list(kernels.values()), jnp.ones((rows, width))
            times = []
            for _ in range(5):  # the first compiles
                start = time.process_time()
                jax.block_until_ready(loop(*given))
                times.append((time.process_time() - start) / turns)
            found.append(f"{name} {1000 * min(times[1:]):.2f} ms")
        print(f"{rows} rows: {', '.join(found)}", flush=True)


def _unboxed(tree: Any) -> Any:
    import flax.linen as nn

    return nn.unbox(tree)


def main(argv: list[str]) -> None:
    del argv
    if sum(map(bool, (_MODEL.value, _DECODER.value, _PRODUCTS.value))) != 1:
        raise app.UsageError("give --model and --data, or --decoder and --text, or --products")
    if _PRODUCTS.value:
        compare_products()
    elif _DECODER.value:
        compare_decoders()
    else:
        compare_recognisers()


if __name__ == "__main__":
    app.run(main)
