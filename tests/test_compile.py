"""`mtp_jax.compile`: what it refuses, what it knows by name, and a program compiled for TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import librispeech, scale
from mtp_jax import interrupts
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.compile import frames_per_embedding, numbers, report, sized
from mtp_jax.config import (
    Adaptor,
    Config,
    ConfigError,
    Decoder,
    Encoder,
    FrontEnd,
    Heads,
    Mesh,
    Optim,
    Pretrained,
    from_config_dict,
)
from mtp_jax.config import Tokenizer as ConfigTokenizer
from mtp_jax.decoding import Greedy
from mtp_jax.distributed.sharding import MeshError, make_mesh
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path, products_type
from mtp_jax.models.recogniser import Vocabulary, call
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.planning.chips import Slice
from mtp_jax.planning.compiled import Task
from mtp_jax.planning.model_flops import count, train_step_flops
from mtp_jax.planning.plan import Planner
from mtp_jax.planning.programs import (
    EXTENDS,
    READS_PROMPT,
    Load,
    lower_decode,
    prompt_length,
    strategy_of,
)
from mtp_jax.planning.worker import lowered
from mtp_jax.tokenizer import CTC_NAME, Tokenizer
from mtp_jax.tokenizer.merges import merges_as_many
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import abstract_state, init_state
from tests import commands
from tests.test_retokenizing import TEXTS
from tests.test_tokenizer_json import byte_level, write_json

ROOT = Path(__file__).parent.parent
TINY = Config(
    front_end=FrontEnd(mel_bins=8),
    encoder=Encoder(subsampling=(4, 2), width=32, layers=2, heads=2, kernel=3, scan_layers=True),
    decoder=Decoder(
        width=32, layers=3, head_size=16, feedforward=64, query_heads=4, scan_layers=True
    ),
    heads=Heads(count=3),
    mesh=Mesh(data=-1, fsdp=2),
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is the package libtpu: pip install libtpu",
)


def planner(folder: Path, topology: str = "v5e:2x2") -> Planner:
    return Planner(TINY, Vocabulary(64, 1, 2), Slice.parse(topology), topology, folder)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--topology=v4:2x2"], "--topology=v4:2x2 names no known chip"),
        (["--topology=v5e:4x4", "--strategy=best"], "--strategy=best is not one of greedy"),
        (["--topology=v5e:4x4", "--calls=0"], "--calls=0 must be a positive number"),
        (["--topology=v5e:4x4", "--calls=2"], "a batch of 2 utterances cannot be shared out"),
        (
            ["--topology=v5e:4x4", "--config.data.batch_size=24"],
            "a batch of 24 utterances cannot be shared out over 16 devices",
        ),
        (
            ["--topology=v5e:4x4", "--config.mesh.fsdp=3"],
            "does not make the 16 chips of v5e:4x4: set one size to -1",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as the command does, for good
    done = commands.run("compile", "--config=scale:125m", *arguments)
    assert done.status in (1, 2)
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_models_on_the_hub_are_known_by_name():
    config, vocabulary = sized(from_config_dict(librispeech.get_config()))
    assert (config.whisper.width, config.whisper.layers, config.front_end.mel_bins) == (512, 6, 80)
    assert (config.decoder.width, config.decoder.layers, config.decoder.kv_heads) == (576, 30, 3)
    assert config.decoder.lora.rank == 32  # the run's own
    assert config.decoder.remat
    assert (vocabulary.size, vocabulary.labels) == (49152, 500)
    assert vocabulary.merges.start[-1] == len(vocabulary.merges.rank) == 49152 - 256
    assert frames_per_embedding(config) == 4


def test_a_model_that_is_not_known_is_refused_by_name():
    unknown = Config(pretrained=Pretrained(decoder="hf://nobody/llama"))
    with pytest.raises(ConfigError, match="hf://nobody/llama is not among the models"):
        sized(unknown)


@pytest.mark.parametrize(
    ("size", "parameters"), [("125m", 122_702_592), ("1b", 1_235_814_400), ("8b", 8_030_261_248)]
)
def test_decoders_have_the_sizes_of_their_namesakes(size, parameters):
    """Those of LLaMA 3 are as published; nothing of them is made here."""
    config, vocabulary = sized(from_config_dict(scale.get_config(size)))
    mesh = make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
    state, _ = abstract_state(SpeechLlama(config, vocabulary), make_optimizer(config.optim), mesh)
    found = sum(x.size for x in jax.tree.leaves(state.params["decoder"]))
    assert found == parameters


def test_an_abstract_state_is_that_of_a_real_one():
    model, optimizer = SpeechLlama(TINY, Vocabulary(64, 1, 2)), make_optimizer(Optim())
    mesh = make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
    shapes, shardings = abstract_state(model, optimizer, mesh)
    real, real_shardings = init_state(model, optimizer, mesh)
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(real), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
    assert shardings == real_shardings


def test_operations_of_a_traced_program():
    """Loops by their length, branches by the longer one, backwards twice forwards."""

    def loss(x, k):
        y, _ = jax.lax.scan(lambda y, _: (y @ k, None), x, None, length=3)
        return jax.lax.cond(x[0, 0] > 0, lambda y: jnp.sum(y @ k), lambda y: jnp.sum(y), y)

    x, k = jnp.ones((2, 4)), jnp.ones((4, 4))
    once = 2 * 2 * 4 * 4
    assert count(jax.make_jaxpr(loss)(x, k).jaxpr) == 4 * once
    assert count(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, k).jaxpr) == 3 * 4 * once


def test_frozen_parameters_spare_operations_and_recomputation_adds_none():
    mesh, load = make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), Load(2, 1.0, 5)

    def needed(**options) -> float:
        decoder = dataclasses.replace(TINY.decoder, remat=options.pop("remat", False))
        optim = Optim(freeze=options.pop("freeze", ()))
        config = dataclasses.replace(TINY, decoder=decoder, optim=optim)
        return train_step_flops(SpeechLlama(config, Vocabulary(64, 1, 2)), mesh, load)

    whole = needed()
    assert needed(remat=True) == whole
    assert 0.6 * whole < needed(freeze=("decoder/*",)) < whole


def test_a_task_survives_json(tmp_path):
    vocabulary = Vocabulary(64, 1, 2, (3, 4), (5,), 8, merges_as_many(64, 8))
    task = Task(TINY, vocabulary, "v5e:2x2", "train", 4, 1.0, 5)
    assert Task.from_json(task.to_json()) == task


def test_a_mesh_that_cannot_hold_the_state_is_not_compiled(tmp_path, monkeypatch):
    """Nor one that the batch, or a parameter, does not divide by."""
    small = planner(tmp_path)
    chip = dataclasses.replace(small.where.chip, hbm_bytes=0.75 * small.state_bytes())
    where = dataclasses.replace(small.where, chip=chip)
    small = dataclasses.replace(small, where=where)
    monkeypatch.setattr(Planner, "train", lambda self, load: {"fits": True, "mesh": self.sizes()})
    found = {str(row["mesh"]): row for row in small.sweep(Load(2, 1.0, 5))}
    assert len(found) == 6
    assert found["4x1x1"]["why"] == found["1x4x1"]["why"] == "the batch does not divide"
    assert "the state alone takes" in found["2x1x2"]["why"]
    assert found["(1, 2, 2)"]["fits"]


def test_the_state_of_a_mesh_is_split(tmp_path):
    whole, half = planner(tmp_path).on(Mesh(4, 1, 1)), planner(tmp_path).on(Mesh(2, 2, 1))
    assert 0.5 < half.state_bytes() / whole.state_bytes() < 0.55
    with pytest.raises(MeshError, match="does not make the 4 chips of v5e:2x2"):
        planner(tmp_path).on(Mesh(3, 1, 1)).sizes()


def test_what_reads_the_prompt_is_known_by_its_name():
    """Or estimates would take its loop for decoder calls."""
    mesh, load = make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), Load(2, 1.0, 5)
    model = SpeechLlama(TINY, Vocabulary(64, 1, 2))
    lowered, _ = lower_decode(model, mesh, load, Greedy())
    names = re.findall(r'op_name="([^"]*)"', lowered.compile().as_text())
    calls = [name for name in names if "/while/body/" in name and "SpeechLlama." in name]
    assert any(READS_PROMPT in name for name in calls)
    assert any(EXTENDS in name for name in calls)
    assert prompt_length(model, load) == 1 + -(-98 // frames_per_embedding(TINY))  # and BOS


@pytest.fixture(scope="module")
def retokenized(tmp_path_factory) -> Path:
    """The workdir of a model whose prompt is made of the tokens that CTC reads."""
    folder = tmp_path_factory.mktemp("retokenized")
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    write_json(folder, byte_level(), tokenizer_config=names)
    Tokenizer.train(TEXTS, folder / CTC_NAME, 60, "bpe")
    config = dataclasses.replace(
        TINY,
        adaptor=Adaptor(ctc_compression=True, retokenized=True),
        decoder=dataclasses.replace(TINY.decoder, prompt_before="turn on", prompt_after="the lamp"),
        tokenizer=ConfigTokenizer(ctc_vocab_size=60),
    )
    Workdir(folder).claim(config)
    return folder


@pytest.mark.parametrize("program", ["greedy", "verify"])
def test_the_program_planned_for_a_model_is_the_one_that_runs(retokenized, program):
    """Its merges and its prompt are in it, also after the way to the process that compiles."""
    given = Workdir(retokenized).read_config()
    model = make_model(given, Tokenizer.load(retokenized))
    config, vocabulary = sized(dataclasses.replace(given, init_from=str(retokenized)))
    assert vocabulary == model.vocabulary
    mesh, load = make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), Load(2, 1.0, 5)
    task = Task(config, vocabulary, "v5e:1x1", program, load.rows, load.seconds, load.tokens)
    planned, shapes = lowered(Task.from_json(task.to_json()), mesh)
    strategy = strategy_of(given, program)
    runs, expected = lower_decode(model, mesh, load, strategy)
    assert planned.as_text() == runs.as_text()
    assert shapes == expected
    assert prompt_length(SpeechLlama(config, vocabulary), load) == prompt_length(model, load)


def test_labels_that_are_still_to_be_trained_have_merges_of_the_right_size(retokenized, tmp_path):
    """The LLM's tokenizer is there, with its prompt; CTC's is not."""
    given = Workdir(retokenized).read_config()
    for file in retokenized.iterdir():
        if file.name not in (CTC_NAME, "config.json") and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = dataclasses.replace(given.tokenizer, model=str(tmp_path), ctc_vocab_size=30)
    _, vocabulary = sized(dataclasses.replace(given, tokenizer=tokenizer))
    known = make_model(given, Tokenizer.load(retokenized)).vocabulary
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (known.size, known.bos, known.eos)
    assert vocabulary.prompt_before == known.prompt_before != ()
    assert vocabulary.labels == len(vocabulary.merges.spelled) == 30


def test_numbers_of_a_flag():
    assert numbers("calls", ["1", "8"]) == [1, 8]


@needs_libtpu
def test_a_training_step_compiled_for_tpus(tmp_path):
    """The compiler's program does what the model needs, within its memory, over the mesh."""
    load = Load(8, 1.0, 5)
    row = planner(tmp_path).train(load)
    assert row["fits"]
    assert row["mesh"] == "2x2x1"
    assert 0.7 < row["flops"] / row["model_flops"] < 2.0
    state = planner(tmp_path).state_bytes()
    assert state < row["argument_bytes"] < state + 8 * 16_000 * 2
    assert 0 < row["mfu"] < 1
    assert row["step_seconds"] >= max(row["compute_seconds"], row["exposed_ici_seconds"])
    assert {what["chips"] for what in row["collectives"]} <= {2, 4}
    assert "train on v5e:2x2, mesh 2x2x1, 8 utterances" in report(row, 16e9)
    files = list(tmp_path.iterdir())
    again = planner(tmp_path).train(load)
    assert again == row
    assert list(tmp_path.iterdir()) == files  # the same, from the file


@needs_libtpu
def test_a_decoder_call_compiled_for_tpus(tmp_path):
    one, three = (
        dataclasses.replace(planner(tmp_path), where=Slice.parse("v5e:1x1"), topology="v5e:1x1")
        .on(Mesh(1, 1, 1))
        .call(rows=2, prompt=12, width=width)
        for width in (1, 3)
    )
    assert 0 < one["call_seconds"] < three["call_seconds"]
    assert three["flops"] > one["flops"] > 0
    assert json.dumps(three)


def test_matrices_in_the_type_of_their_products_change_nothing():
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, dtype="bfloat16"))
    model = SpeechLlama(config, Vocabulary(64, 1, 2))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    features = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)
    given = (features, np.array([16, 9]), np.array([[3, 4, 2], [5, 2, 0]]), np.array([3, 2]))

    @jax.jit
    def outputs(params):
        hidden, encoded = call(SpeechLlama.__call__, model, params, *given)
        return call(SpeechLlama.all_logits, model, params, hidden), encoded.ctc_logits

    rounded = products_type(params, "bfloat16")
    for a, b in zip(outputs(params), outputs(rounded), strict=True):
        np.testing.assert_array_equal(a, b)
    kept = {p for p, x in by_path(rounded).items() if x.dtype == jnp.float32}
    assert "ctc/kernel" in kept
    assert not any(p.endswith("kernel") for p in kept - {"ctc/kernel"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compilation_ends_its_process(number, tmp_path, monkeypatch):
    """The compiler is one that never ends."""
    slow = tmp_path / "slow"
    slow.write_text(f"#!{sys.executable}\nimport time, sys\nopen(sys.argv[0] + '.on', 'w')\n")
    with slow.open("a") as file:
        file.write("time.sleep(300)\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    def interrupt() -> None:
        while not slow.with_suffix(".on").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    with interrupts.handled():
        threading.Thread(target=interrupt).start()
        begun = time.monotonic()
        with pytest.raises(interrupts.Interrupted):
            planner(tmp_path / "cache").train(Load(4, 1.0, 8))
    assert time.monotonic() - begun < 60
    assert not list((tmp_path / "cache").iterdir())
    running = subprocess.run(["pgrep", "-f", str(slow)], capture_output=True, text=True)
    assert not running.stdout
