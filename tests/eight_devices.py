"""Two training batches on 1 device and on meshes of 8; run by tests/test_sharding.py.

XLA makes several devices of one CPU only if told before JAX starts, so this is a process of its
own: ``python -m tests.eight_devices OUT`` writes ``OUT/MESH.npz`` (state and scalars after two
batches, which make one update), ``OUT/shards.json`` (the shape that one device holds of
each parameter and of its moments), ``OUT/released.json`` (texts of a released model) and
``OUT/meshes.json``.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtp_jax import config as configs
from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.config import Config, Decoder, Encoder, FrontEnd, Heads, Mwer, Optim
from mtp_jax.data import Batch, Source, Utterance
from mtp_jax.decoding import BeamSearch, CtcGreedy, Greedy, PrefixBeam, Threshold, Verify
from mtp_jax.distributed.sharding import (
    MeshError,
    batch_divisor,
    batch_sharding,
    make_mesh,
    use_mesh,
)
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.flag_checks import mesh_of
from mtp_jax.inference.decoder_functions import encode
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.recogniser import Recogniser, Vocabulary, call
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import TrainState, init_state, make_train_step
from mtp_jax.training.word_hashes import Spelling
from tests.speech_llms import GOLDEN, batch_of, texts
from tests.tiny_speech_llm import tiny_speech_llm
from tests.tiny_whisper import tiny_whisper

V, B, T, L = 16, 8, 3200, 6
MODEL = SpeechLlama(
    Config(
        front_end=FrontEnd(mel_bins=8),
        encoder=Encoder(subsampling=(4,), width=8, layers=1, heads=2, feedforward=2, kernel=3),
        decoder=Decoder(
            width=8,
            layers=2,
            query_heads=4,
            kv_heads=2,
            head_size=4,
            feedforward=12,
            dropout=0.1,
            scan_layers=True,
            tied=False,
        ),
        heads=Heads("independent", 3, layers=1),
        mwer=Mwer(weight=0.5, beams=3, all_heads=True),
        optim=Optim(steps=10, warmup_steps=0, learning_rate=1e-2, accumulate=2),
    ),
    Vocabulary(V, bos=1, eos=2, prompt_before=(3,)),
)
# Every piece a letter of its own, every other one the first of a word.
SPELLING = Spelling(
    hash=jnp.arange(V, dtype=jnp.uint32),
    power=jnp.full(V, 101, jnp.uint32),
    characters=jnp.ones(V, jnp.int32).at[:3].set(0),
    starts=jnp.arange(V) % 2 == 0,
)
WHISPER = tiny_whisper(Heads("latent", 3, layers=1), optim=MODEL.config.optim)
LLM = tiny_speech_llm(Heads("serial", 3, layers=1), optim=MODEL.config.optim)
# MWER takes long to compile: two meshes are enough for it.
PLAIN = MODEL.clone(config=dataclasses.replace(MODEL.config, mwer=Mwer()))
RUNS = {
    "one": (MODEL, configs.Mesh(data=1)),
    "fsdp_and_tensor": (MODEL, configs.Mesh(data=2, fsdp=2, tensor=2)),
    "plain_one": (PLAIN, configs.Mesh(data=1)),
    "data": (PLAIN, configs.Mesh(data=-1)),
    "fsdp": (PLAIN, configs.Mesh(data=1, fsdp=8)),
    "data_and_tensor": (PLAIN, configs.Mesh(data=4, tensor=2)),
    "whisper_one": (WHISPER, configs.Mesh(data=1)),
    "whisper_fsdp_and_tensor": (WHISPER, configs.Mesh(data=2, fsdp=2, tensor=2)),
    "llm_one": (LLM, configs.Mesh(data=1)),
    "llm_fsdp_and_tensor": (LLM, configs.Mesh(data=2, fsdp=2, tensor=2)),
}
# As --mesh and --weights have them.
RELEASED = {
    name: (mesh_of(sizes) or configs.Mesh(data=1), weights)
    for name, (sizes, weights) in {
        "one": ((), ""),
        "fsdp": (("fsdp=8",), ""),
        "fsdp_and_tensor": (("fsdp=2", "tensor=2"), ""),
        "one_int8": ((), "int8"),
        "fsdp_and_tensor_int8": (("fsdp=2", "tensor=2"), "int8"),
    }.items()
}
STRATEGIES = {
    "ctc": CtcGreedy(),
    "greedy": Greedy(),
    "threshold": Threshold(0.1),
    "verify": Verify(),
    "beam": BeamSearch(3),
    "prefix_beam": PrefixBeam(3, width=3),
}
# The others have nothing of their own: a Whisper's second cache is read, and gathered by a search.
OF_WHISPER = ("greedy", "verify", "prefix_beam")
OF_LLM = ("greedy", "verify")
SOURCE = Source("rows", "", [Utterance(str(i), "", 1.0) for i in range(B)], [], np.zeros)


class Pieces:
    """Stands for a tokenizer: a token is its number."""

    @property
    def ctc(self) -> Pieces:
        return self

    def decode(self, tokens: Any) -> str:
        return " ".join(map(str, tokens))


def batch(seed: int) -> Batch:
    """Rows of every length, a short one, and one that is only filler."""
    rng = np.random.default_rng(seed)
    audio_length = np.array([T, T - 500, 400, T // 2, T, T - 7, 0, 2000], np.int32)
    token_length = np.array([L, 3, 2, L, 1, 5, 0, 4], np.int32)
    audio = rng.integers(-3000, 3000, (B, T))
    tokens = rng.integers(4, V, (B, L))
    tokens[np.arange(B), np.maximum(token_length - 1, 0)] = MODEL.vocabulary.eos
    return Batch(
        audio=np.where(np.arange(T) < audio_length[:, None], audio, 0).astype(np.int16),
        audio_length=audio_length,
        tokens=np.where(np.arange(L) < token_length[:, None], tokens, 0).astype(np.int32),
        token_length=token_length,
        index=np.where(token_length > 0, np.arange(B), -1).astype(np.int32),
    )


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the names of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def parts(state: TrainState) -> dict[str, Any]:
    """Parameters and both moments, by name."""
    adam = next(
        s
        for s in jax.tree.leaves(
            state.opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState)
        )
        if isinstance(s, optax.ScaleByAdamState)
    )
    return named({"params": state.params, "mu": adam.mu, "nu": adam.nu})


def untied(params: Any) -> Any:
    """Heads begin as copies of one another, so that texts tie in which tokens change places."""
    if "kernel" not in params["heads"]:  # serial ones are drawn
        return params
    kernel = params["heads"]["kernel"]
    noise = 0.3 * np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    kernel += jax.device_put(noise, kernel.sharding)
    return params | {"heads": params["heads"] | {"kernel": kernel}}


def run(out: Path) -> None:
    shards: dict[str, Any] = {}
    states: dict[str, Any] = {}
    for name, (model, sizes) in RUNS.items():
        mesh = make_mesh(sizes, jax.devices()[: 1 if sizes.data == 1 == sizes.fsdp else 8])
        optimizer = make_optimizer(model.config.optim)
        state, shardings = init_state(model, optimizer, mesh)
        state = dataclasses.replace(state, params=untied(state.params))
        arrays = {f"start/{key}": jax.device_get(x) for key, x in parts(state).items()}
        step = make_train_step(model, optimizer, shardings, SPELLING)
        for seed in (0, 1):
            placed = jax.device_put(batch(seed), batch_sharding(mesh))
            state, metrics = step(state, placed)
            arrays |= {f"metrics_{seed}/{key}": x for key, x in metrics.items()}
        arrays |= parts(state)
        shards[name] = {
            key: [x.sharding.shard_shape(x.shape), x.shape] for key, x in parts(state).items()
        }
        np.savez(out / f"{name}.npz", **jax.device_get(arrays))
        states[name] = state, shardings
        if name.endswith(("one", "fsdp_and_tensor")) and not name.startswith("plain"):
            decode_all(out, name, model, mesh, state)
    (out / "shards.json").write_text(json.dumps(shards))
    with Checkpoints(out / "run") as checkpoints:
        checkpoints.save(states["fsdp"][0])
        checkpoints.wait()
        for name, (state, shardings) in states.items():
            if name.startswith(("whisper", "llm")):
                continue
            restored = checkpoints.restore(state, shardings)
            assert jax.tree.map(lambda x: x.sharding, restored) == shardings
            np.savez(out / f"restored_{name}.npz", **jax.device_get(parts(restored)))


def decode_all(
    out: Path, name: str, model: Recogniser, mesh: jax.sharding.Mesh, state: TrainState
) -> None:
    """Tokens and calls of every strategy, and what one device holds of the caches."""
    runner = Runner(model, state.model_params, Pieces(), mesh)
    found = {}
    for label, strategy in STRATEGIES.items():
        if label == "ctc" and not model.vocabulary.has_ctc:
            continue
        if name.startswith("llm") and label not in OF_LLM:
            continue
        if name.startswith("whisper") and label not in OF_WHISPER:
            continue
        found[label] = [
            [[*h.tokens], h.calls, [[*a.tokens] for a in h.nbest]]
            for h in decode_source(runner, SOURCE, [batch(0)], strategy).hypotheses
        ]
    with use_mesh(mesh):
        prefill = jax.jit(lambda p, e: call(Recogniser.prefill, model, p, e, 4)[1])
        encoded = jax.jit(lambda p, b: encode(model, p, b))
        placed = runner.place(batch(0))
        cache = prefill(state.model_params, encoded(state.model_params, placed))
    kept = {"text": cache.keys} | ({"audio": cache.cross.keys[0]} if cache.cross else {})
    found["caches"] = {k: [x.sharding.shard_shape(x.shape), x.shape] for k, x in kept.items()}
    (out / f"decoded_{name}.json").write_text(json.dumps(found))


def decode_released(out: Path) -> None:
    """Texts of the golden Voxtral on each mesh, and what one device holds of its parameters."""
    found = {}
    for name, (sizes, weights) in RELEASED.items():
        mesh = make_mesh(sizes, jax.devices()[: 1 if sizes.data == 1 == sizes.fsdp else 8])
        runner = load(open_model_folder(GOLDEN / "voxtral"), mesh, weights=weights)
        rows = batch_of("voxtral")
        several = jax.tree.map(lambda x: np.repeat(x, 8 // len(x) + 1, axis=0)[:8], rows)
        decoded = runner.run(several, Greedy()).decoded
        arrays = jax.tree.leaves(runner.params)
        found[name] = {
            "texts": texts(decoded.tokens, decoded.length, decoded.tokens.shape[1]).tolist(),
            "share": sum(x.addressable_shards[0].data.nbytes for x in arrays)
            / sum(x.nbytes for x in arrays),
        }
    (out / "released.json").write_text(json.dumps(found))


def lay_out(out: Path) -> None:
    """What `make_mesh` makes, and what `init_state` refuses."""
    meshes = {}
    for sizes in ((-1, 1, 1), (2, -1, 2), (4, 2, 1), (1, 1, -1)):
        mesh = make_mesh(configs.Mesh(*sizes))
        meshes[str(sizes)] = [list(mesh.shape.values()), batch_divisor(mesh)]
    try:
        init_state(MODEL, make_optimizer(MODEL.config.optim), make_mesh(configs.Mesh(1, 1, 8)))
    except MeshError as error:
        meshes["refusal"] = str(error)
    (out / "meshes.json").write_text(json.dumps(meshes))


if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 100)  # as in tests/conftest.py
    lay_out(Path(sys.argv[1]))
    run(Path(sys.argv[1]))
    decode_released(Path(sys.argv[1]))
