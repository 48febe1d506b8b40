"""A decoder call beside the same call of `transformers`, and beside its bare matrix products.

    python -m bench.against_transformers --model=SmolLM2-135M.gguf
        [--transformers_python=PATH] [--calls=8] [--rounds=5] [--threads=2]

Float32, greedy, the same weights and tokens on both sides: each side is timed while it feeds its
cache behind a prompt of 64 embeddings. The sides take turns, and `transformers` runs in a process
of its own, so that neither's threads get in the way of the other's. The least time of each counts.
Where torch and transformers are in another environment, name its interpreter. A machine that does
other work meanwhile gives no usable figures.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.pretrained.llama import export_llama, hf_config, import_llama, llama_architecture

_MODEL = flags.DEFINE_string("model", None, "a GGUF file or Hugging Face folder", required=True)
_PYTHON = flags.DEFINE_string("transformers_python", sys.executable, "one that has transformers")
_CALLS = flags.DEFINE_integer("calls", 8, "decoder calls that are timed at once", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each side", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "threads of torch", lower_bound=1)

SHAPES = ((1, 1), (8, 1), (1, 8), (8, 8))  # (utterances, tokens a call)
PROMPT = 64
THEIRS = pathlib.Path(__file__).with_name("transformers_side.py")


def ours(model: Llama, params: Any, rows: int, width: int, calls: int) -> Callable[[], np.ndarray]:
    """A function of no argument that decodes; int32[calls, rows, width] tokens."""

    def apply(method: Any, *args: Any) -> Any:
        return lambda params: model.apply({"params": params}, *args, method=method)

    @jax.jit
    def decode(params: Any, prompt: jax.Array) -> jax.Array:
        cache = apply(Llama.empty_cache, rows, PROMPT + calls * width)(params)
        real = jnp.ones((rows, PROMPT), bool)
        hidden, cache = apply(None, prompt, real, cache)(params)

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            tokens, cache = carry
            x = apply(Llama.embed, tokens)(params)
            hidden, cache = apply(None, x, jnp.ones((rows, width), bool), cache)(params)
            tokens = jnp.argmax(apply(Llama.unembed, hidden)(params), axis=-1).astype(jnp.int32)
            return (tokens, cache), tokens

        first = jnp.argmax(apply(Llama.unembed, hidden[:, -1:])(params), axis=-1)
        tokens = jnp.broadcast_to(first, (rows, width)).astype(jnp.int32)
        return jax.lax.scan(step, (tokens, cache), None, calls)[1]

    x = jnp.asarray(prompt(rows, model.config.width))
    return lambda: np.asarray(decode(params, x))


def prompt(rows: int, width: int) -> np.ndarray:
    """float32[rows, PROMPT, width]; every row is another."""
    return np.random.default_rng(0).normal(0, 0.1, (rows, PROMPT, width)).astype(np.float32)


def products(layout: Any, layers: int, rows: int) -> Callable[[], Any]:
    """A function that multiplies `rows` rows by every kernel of a decoder call, and does no more.

    Each product's input is a part of the last one's output, so that none can be left out.
    """
    kernels = [
        kernel
        for i in range(layers)
        for kernel in jax.tree.leaves(layout[f"layer_{i}"])
        if kernel.ndim == 2
    ]

    @jax.jit
    def run(x: jax.Array, kernels: list[jax.Array], embedding: jax.Array) -> jax.Array:
        for kernel in (*kernels, embedding.T):
            copies = -(-kernel.shape[0] // x.shape[1])
            x = jnp.tile(x, (1, copies))[:, : kernel.shape[0]] @ kernel
        return x

    x = jnp.asarray(prompt(rows, layout["embedding"].shape[1])[:, 0])
    return lambda: jax.block_until_ready(run(x, kernels, layout["embedding"]))


class Theirs:
    """`transformers` in a process of its own.

    Args:
        folder: the model, as Hugging Face's folder.
        python: an interpreter that has torch and transformers.
        threads: of torch.
    """

    def __init__(self, folder: pathlib.Path, python: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, str(THEIRS), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, rows: int, width: int, calls: int) -> tuple[float, np.ndarray]:
        """Seconds that `calls` calls took, and their int32[calls, rows, width] tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([rows, width, calls]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self._process.args[0]} has no working torch and transformers: pip install"
                " 'mtp_jax[bench]', or name another interpreter with --transformers_python"
            )
        answer = json.loads(line)
        return answer["seconds"], np.array(answer["tokens"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(model: Llama, params: Any, theirs: Theirs, rows: int, width: int) -> str:
    """One row of the table."""
    calls = _CALLS.value
    layout = for_decoding({"decoder": params}, model.config.lora)["decoder"]
    ways = {n: ours(model, layout, rows, width, n) for n in (calls, 2 * calls)}
    bare = products(layout, model.config.layers, rows * width)
    tokens = ways[calls]()
    ways[2 * calls]()
    bare()
    theirs(rows, width, calls)
    each: dict[str, list[float]] = {"short": [], "long": [], "theirs": [], "bare": []}
    same = True
    for _ in range(_ROUNDS.value):
        each["short"].append(timed(ways[calls]))
        each["long"].append(timed(ways[2 * calls]))
        seconds, answer = theirs(rows, width, calls)
        each["theirs"].append(seconds)
        each["bare"].append(timed(bare))
        same &= np.array_equal(answer, tokens)
    short, long, them, floor = (1e3 * min(times) for times in each.values())
    # The prefill, which is in both, cancels. Ours are the later calls, whose cache is longer.
    us, them = (long - short) / calls, them / calls
    return (
        f"{rows:5d} {width:5d} {us:8.1f} {them:12.1f} {us / them:6.2f} {floor:9.1f}"
        f"  {'the same' if same else 'OTHERS'}"
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    source = llama_architecture(_MODEL.value)
    model = Llama(source.config, source.vocab_size)
    x, real = jnp.zeros((1, 1, source.config.width)), jnp.ones((1, 1), bool)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x, real))["params"]
    params = import_llama(_MODEL.value, shapes)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        fields = hf_config(source.config, source.vocab_size, source.bos or 0, source.eos or 0)
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        tensors = {k: np.ascontiguousarray(v) for k, v in export_llama(params).items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        theirs = Theirs(folder, _PYTHON.value, _THREADS.value)
        try:
            print(f"{'batch':>5} {'width':>5} {'ours ms':>8} transformers  ratio  products  tokens")
            for rows, width in SHAPES:
                print(compare(model, params, theirs, rows, width), flush=True)
        finally:
            theirs.close()


if __name__ == "__main__":
    app.run(main)
