"""Front end, encoder and CTC on this device, beside their bare matrix products.

    python -m bench.encoder_share --model=DIR [--seconds=10,30] [--rows=1,8]

DIR is a workdir, an export or a Whisper. *Share* is the time of the bare products (the same shapes,
one behind the other, with nothing between them) over the time of the part: 1 would be a part in
which all else is free. The least of several runs counts, in turn. A machine that does other work
meanwhile gives no usable figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from mtp_jax.audio.log_mel import feature_length, log_mel
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.recogniser import Recogniser, call

_MODEL = flags.DEFINE_string("model", None, "a workdir, an export or a Whisper", required=True)
_ENCODER = flags.DEFINE_string("encoder", "", "where its frozen speech encoder is")
_SECONDS = flags.DEFINE_list("seconds", ["10", "30"], "of the utterances")
_ROWS = flags.DEFINE_list("rows", ["1", "8"], "utterances at once")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each", lower_bound=1)

Shape = tuple[int, int, int, int]  # of a product: how many, and [rows, in] x [in, out]


def transformer_products(
    layers: int, frames: int, width: int, heads: int, batch: int
) -> list[Shape]:
    """Products of pre-norm layers with a feed-forward part four times as wide."""
    rows, size = batch * frames, width // heads
    return layers * [
        *(4 * [(1, rows, width, width)]),
        (batch * heads, frames, size, frames),
        (batch * heads, frames, frames, size),
        (1, rows, width, 4 * width),
        (1, rows, 4 * width, width),
    ]


def bare(shapes: Sequence[Shape]) -> Callable[[], Any]:
    """A program of nothing but products, none of which waits for another's result."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    unique = dict.fromkeys(shapes)
    operands = {s: (array(s[0], s[1], s[2]), array(s[0], s[2], s[3])) for s in unique}
    counts = [shapes.count(s) for s in unique]

    @jax.jit
    def run(operands: Any) -> Any:
        total = jnp.zeros(())
        for (a, b), count in zip(operands.values(), counts, strict=True):

            def step(i: Any, a: jax.Array, b: jax.Array = b) -> jax.Array:
                y = a @ b  # its first column goes into the next, so that none is left out
                return a.at[:, :, 0].add(1e-9 * y[:, :, 0])

            total += jax.lax.fori_loop(0, count, step, a)[0, 0, 0]
        return total

    return lambda: run(operands)


def least(parts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the least of `rounds` turns; one more warms up."""
    found = {name: float("inf") for name in parts}
    for turn in range(rounds + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(part())
            if turn:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    runner = load(open_model_folder(_MODEL.value), pretrained=_ENCODER.value)
    model, params, c = runner.model, runner.params, runner.model.config
    if not c.whisper.present:
        raise app.UsageError("the model has no Whisper encoder")
    print("seconds rows  front end   encoder  products  share   behind it")
    for seconds in map(float, _SECONDS.value):
        for rows in map(int, _ROWS.value):
            samples = round(seconds * c.front_end.sample_rate)
            audio = np.random.default_rng(1).normal(scale=2000, size=(rows, samples))
            audio, length = audio.astype(np.int16), np.full(rows, samples, np.int32)
            front = jax.jit(lambda a, n: log_mel(a, n, c.front_end))
            mel, frames = front(audio, length)
            encoder = jax.jit(lambda p, x, n: call(Recogniser.encode_speech, model, p, x, n))
            states = encoder(params, mel, frames)
            behind = jax.jit(lambda p, x, n: call(Recogniser.encode, model, p, x, n))
            count, w = int(feature_length(samples, c.front_end)) // 2, c.whisper
            products = [
                (1, rows * 2 * count, 3 * c.front_end.mel_bins, w.width),
                (1, rows * count, 3 * w.width, w.width),
                *transformer_products(w.layers, count, w.width, w.heads, rows),
            ]
            half = (np.asarray(frames) + 1) // 2
            took = least(
                {
                    "front": lambda f=front, a=audio, n=length: f(a, n),
                    "encoder": lambda f=encoder, x=mel, n=frames: f(params, x, n),
                    "products": bare(products),
                    "behind": lambda f=behind, x=states, n=half: f(params, x, n),
                },
                _ROUNDS.value,
            )
            ms = {name: 1000 * value for name, value in took.items()}
            print(
                f"{seconds:7g} {rows:4d} {ms['front']:8.1f}ms {ms['encoder']:7.1f}ms"
                f" {ms['products']:7.1f}ms {took['products'] / took['encoder']:6.2f}"
                f" {ms['behind']:9.1f}ms"
            )


if __name__ == "__main__":
    app.run(main)
