"""The training loop and the two commands, on a tiny model and a tiny corpus."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import (
    Augment,
    Config,
    Data,
    Decoder,
    Encoder,
    Evaluation,
    Heads,
    Mwer,
    Optim,
    Tokenizer,
    Train,
    to_config_dict,
)
from mtp_jax.evaluation.scalars import read_scalars
from mtp_jax.inference.load import load
from mtp_jax.interrupts import Interrupted
from mtp_jax.training import loop
from mtp_jax.training.monitor import LossMonitor, TrainingStopped
from mtp_jax.training.step import noisy_tokens
from tests import commands

pytestmark = pytest.mark.usefixtures("_steps_are_shared")
STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """A run of six steps; its caches outlive the single test."""
    cache = tmp_path_factory.mktemp("cache")
    return Config(
        data=Data(
            train="embedded/tiny:train",
            dev="embedded/tiny:dev",
            test="embedded/tiny:test",
            cache_dir=str(cache),
            bucket_seconds=(3.2,),
            batch_size=8,
            max_tokens=48,
        ),
        augment=Augment(speeds=(0.95, 1.0)),
        tokenizer=Tokenizer(vocab_size=64),
        encoder=Encoder(width=16, layers=1, heads=2, kernel=3, feedforward=1, dropout=0.1),
        decoder=Decoder(width=16, layers=1, query_heads=2, head_size=8, feedforward=16),
        heads=Heads(count=3),
        optim=Optim(steps=STEPS, warmup_steps=1),
        train=Train(log_every=2, dev_every=STEPS, checkpoint_every=3),
        evaluation=Evaluation(batch_sizes=(8,), taus=(0.5, 0.9)),
    )


class Killed(Exception):
    """Stands for a machine that is gone."""


def train(config: Config, path: pathlib.Path, monkeypatch=None, at=None, how=None):
    """Trains in `path`; `how` happens once step `at` is made, if given."""
    workdir = Workdir(path)
    workdir.claim(config)
    if at is not None:
        make = loop.make_train_step

        def making(*args):
            step_fn = make(*args)

            def step(state, batch):
                state, metrics = step_fn(state, batch)
                if int(state.step) == at:
                    how()
                return state, metrics

            return step

        with monkeypatch.context() as patch:
            patch.setattr(loop, "make_train_step", making)
            return loop.train(config, workdir)
    return loop.train(config, workdir)


def final_state(config: Config, path: pathlib.Path):
    """All arrays of the last checkpoint, as bytes."""
    workdir = Workdir(path)
    runner = load(workdir)
    optimizer = loop.make_optimizer(config.optim)
    state, shardings = loop.init_state(runner.model, optimizer, runner.mesh)
    with Checkpoints(path) as checkpoints:
        assert checkpoints.latest_step == STEPS
        state = checkpoints.restore(state, shardings)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(config, path)
    return path


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [4, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 5))])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    config, uninterrupted, tmp_path, monkeypatch, at
):
    with pytest.raises(Killed):
        train(config, tmp_path, monkeypatch, at, kill)
    train(config, tmp_path)
    assert final_state(config, tmp_path) == final_state(config, uninterrupted)


def test_who_looks_into_a_workdir_leaves_the_save_that_is_under_way(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    saving = [
        tmp_path / "run" / kind / "9.orbax-checkpoint-tmp" for kind in ("checkpoints", "best")
    ]
    for folder in saving:
        folder.mkdir()
    load(Workdir(tmp_path / "run"))
    assert all(folder.exists() for folder in saving)
    with Checkpoints(tmp_path / "run", alone=True):
        while any(folder.exists() for folder in saving):
            time.sleep(0.01)  # it happens in the background, before the first save


def test_a_pattern_that_fits_nothing_is_told(config, tmp_path, caplog):
    slips = dataclasses.replace(
        config.optim, steps=2, freeze=("decodr/*", "!ctc/*"), rates=("head/*=0.1", "ctc/*=0.5")
    )
    train(dataclasses.replace(config, optim=slips), tmp_path)
    for said in ("freeze=decodr/*", "rates=head/*"):
        assert f"config.optim.{said} matches no parameter" in caplog.text
    assert caplog.text.count("matches no parameter") == 2


def test_sigterm_saves_the_step_it_came_in(config, uninterrupted, tmp_path, monkeypatch):
    with pytest.raises(Interrupted, match="SIGTERM: step 4 is saved") as stopped:
        train(config, tmp_path, monkeypatch, 4, terminate)
    assert stopped.value.exit_status == 143
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 4
    train(config, tmp_path)
    assert final_state(config, tmp_path) == final_state(config, uninterrupted)


def terminate_in_dev(monkeypatch: pytest.MonkeyPatch, at: int | None) -> list[int]:
    """SIGTERM in the first batch of the evaluation of dev with that number.

    Returns:
        For each batch of dev that is decoded from now on the number of its evaluation.
    """
    decoded, evaluations = [], itertools.count()
    decode = loop.decode_source

    def stopped(runner, source, batches, strategy):
        evaluation = next(evaluations)

        def counted():
            for batch in batches:
                if evaluation == at:
                    terminate()
                decoded.append(evaluation)
                yield batch

        return decode(runner, source, counted(), strategy)

    monkeypatch.setattr(loop, "decode_source", stopped)
    return decoded


def test_sigterm_in_dev_saves_first_and_dev_is_redone(config, tmp_path, monkeypatch):
    two = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, dev_every=3, checkpoint_every=4),
        evaluation=dataclasses.replace(config.evaluation, batch_sizes=(4,)),
    )
    train(two, tmp_path / "undisturbed")
    disturbed = Workdir(tmp_path / "disturbed")
    for at, step in enumerate((3, STEPS)):  # the second time, that of step 3 is redone first
        with monkeypatch.context() as patch:
            decoded = terminate_in_dev(patch, at)
            with pytest.raises(Interrupted, match=f"SIGTERM: step {step} is saved"):
                train(two, disturbed.path)
        assert decoded.count(at) == 1  # of two
        assert step not in disturbed.read_dev()
        assert not loop.finished(two, disturbed)
        with Checkpoints(disturbed.path) as checkpoints:
            assert checkpoints.latest_step == step
    train(two, disturbed.path)
    assert loop.finished(two, disturbed)
    assert final_state(two, disturbed.path) == final_state(two, tmp_path / "undisturbed")
    assert disturbed.read_dev() == Workdir(tmp_path / "undisturbed").read_dev()
    assert sorted(disturbed.read_dev()) == [3, STEPS]
    best = []
    for path in (disturbed.path, tmp_path / "undisturbed"):
        with Checkpoints(path) as checkpoints:
            best.append(checkpoints.best())
    assert best[0] == best[1]


def test_sigterm_at_a_step_that_dev_follows_decodes_nothing(config, tmp_path, monkeypatch):
    decoded = terminate_in_dev(monkeypatch, None)
    with pytest.raises(Interrupted, match=f"step {STEPS} is saved"):
        train(config, tmp_path, monkeypatch, STEPS, terminate)
    assert decoded == []


def test_nothing_holds_parameters_that_a_step_has_donated(config, tmp_path, monkeypatch):
    runners, held = [], []

    class Kept(loop.Runner):
        def __init__(self, *args):
            super().__init__(*args)
            runners.append(self)

    monkeypatch.setattr(loop, "Runner", Kept)
    often = dataclasses.replace(config.train, dev_every=2)
    make = loop.make_train_step

    def making(*args):
        step_fn = make(*args)

        def step(state, batch):
            done = step_fn(state, batch)
            leaves = jax.tree.leaves(vars(runners[0]))
            held.extend(x.is_deleted() for x in leaves if isinstance(x, jax.Array))
            return done

        return step

    monkeypatch.setattr(loop, "make_train_step", making)
    train(dataclasses.replace(config, train=often), tmp_path)
    assert len(runners) == 1
    assert not any(held)
    assert not any(x.is_deleted() for x in jax.tree.leaves(runners[0].params))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(
    config, tmp_path, monkeypatch
):
    make = loop.make_train_step

    def making(*args):
        step_fn = make(*args)

        def step(state, batch):
            broken = int(state.step) == 4
            state, metrics = step_fn(state, batch)
            return state, metrics | {"loss": metrics["loss"] * np.nan} if broken else metrics

        return step

    monkeypatch.setattr(loop, "make_train_step", making)
    with pytest.raises(TrainingStopped, match=r"loss is nan .* at step 5"):
        train(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3


def test_a_loss_that_explodes_stops(config):
    monitor = LossMonitor(max_loss_ratio=10.0)
    scalars = {"gradient_norm": np.float32(1), "audio_seconds": np.float32(1)}
    losses = {"loss": np.float32(0.1), "head_1": np.float32(2)}
    monitor.pending = [(step, scalars | losses) for step in range(3)]
    assert monitor.check()["head_1"] == 2
    monitor.pending = [(3, scalars | losses | {"head_1": np.float32(21)})]
    with pytest.raises(TrainingStopped, match="rose to 21 by step 3"):
        monitor.check()


def test_ratios_of_losses_near_zero_say_nothing():
    monitor = LossMonitor(max_loss_ratio=10.0)
    scalars = {"gradient_norm": np.float32(1), "audio_seconds": np.float32(1)}

    def check(step: int, loss: float) -> None:
        monitor.pending = [(step, scalars | {"loss": np.float32(loss), "head_1": np.float32(loss)})]
        monitor.check()

    for step in range(40):
        check(step, 1e-6)
    check(40, 2e-3)
    check(41, 0.9)
    check(42, 1e-6)
    with pytest.raises(TrainingStopped, match=r"rose to 21 by step 43"):
        check(43, 21)


def test_a_used_workdir_refuses_another_config(config, uninterrupted):
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(WorkdirError, match="seed: 0 -> 1"):
        Workdir(uninterrupted).claim(other)


def test_every_step_reads_its_own_batch(config, uninterrupted):
    report = json.loads(Workdir(uninterrupted).report.read_text())
    assert report["kept"] == 64
    assert not report["skipped"]


def command(module: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"mtp_jax.{module}", *flags],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )


ROW = {
    *("strategy", "options", "batch_size", "wer", "cer", "decoder_calls", "loop_steps", "tokens"),
    *("call_reduction", "tokens_per_call", "calls_per_word", "acceptance_by_head"),
    *("identical_to_greedy", "at_length_limit", "rtfx", "compile_seconds", "drafter_calls"),
}


def test_the_commands_as_a_user_runs_them(config, uninterrupted, tmp_path):
    file = tmp_path / "run.py"
    values = to_config_dict(config).to_dict()
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({values!r})\n"
    )
    flags = (f"--config={file}", f"--workdir={uninterrupted}")

    done = command("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "evaluating only" in done.stderr
    assert "| verify" in done.stdout
    results = json.loads((uninterrupted / "results.json").read_text())
    assert results["heads"] == {"kind": "latent", "M": 3}
    assert results["dataset"]["utterances"] == 8
    assert all(row.keys() >= ROW for row in results["rows"])
    assert {row["batch_size"] for row in results["rows"]} == {8}
    rows = {(row["strategy"], row["options"].get("width")): row for row in results["rows"]}
    assert rows.keys() == {
        *(("ctc", None), ("greedy", 1), ("greedy", 3), ("threshold", None), ("verify", None)),
        ("verify_ctc", 16),
    }
    assert rows["verify", None]["identical_to_greedy"] == 1
    assert rows["verify_ctc", 16]["identical_to_greedy"] == 1
    assert rows["verify", None]["wer"] == rows["greedy", 3]["wer"]
    assert rows["greedy", 1]["decoder_calls"] == rows["greedy", 1]["tokens"]
    assert rows["ctc", None]["decoder_calls"] == 0
    pictures = [uninterrupted / "wer_against_calls.png", uninterrupted / "acceptance_by_head.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    lines = (uninterrupted / "hypotheses" / "verify_batch8.jsonl").read_text().splitlines()
    assert (
        sum(json.loads(line)["decoder_calls"] for line in lines)
        == (rows["verify", None]["decoder_calls"])
    )

    output = tmp_path / "again"
    done = commands.run(
        "evaluate",
        f"--workdir={uninterrupted}",
        "--strategy=greedy,beam,prefix_beam",
        "--batch_size=4",
        "--beams=3",
        f"--output={output}",
    )
    assert done.status == 0, done.err
    again = json.loads((output / "results.json").read_text())
    options = [(row["strategy"], row["options"]) for row in again["rows"]]
    assert options[2:] == [
        ("beam", {"beams": 3}),
        ("prefix_beam", {"beams": 3}),
    ]
    assert {row["batch_size"] for row in again["rows"]} == {4}
    for row in again["rows"][2:]:
        assert row["oracle_wer"]["1"] == row["wer"] >= row["oracle_wer"]["3"]
    assert "best of 3, WER %" in done.out
    lists = (output / "nbest" / "prefix_beam_beams3_batch4.jsonl").read_text().splitlines()
    assert len(lists) == 8
    first = json.loads(lists[0])["hypotheses"]
    assert len(first) == 3
    for hypothesis in first:
        confidences = [confidence for _, confidence in hypothesis["tokens"]]
        assert hypothesis["score"] == pytest.approx(sum(np.log(confidences)), abs=0.05)


def test_mwer_goes_on_from_a_finished_model(config, uninterrupted, tmp_path):
    """With data parallelism where there are devices; the cross-entropy run is its first half."""
    tuned = dataclasses.replace(
        config,
        init_from=str(uninterrupted),
        mwer=Mwer(weight=1.0, cross_entropy=0.1, beams=3, reference=True),
        optim=dataclasses.replace(config.optim, steps=2, warmup_steps=0, learning_rate=1e-4),
    )
    train(tuned, tmp_path)
    scalars = {k: list(v.values()) for k, v in read_scalars(Workdir(tmp_path)).items()}
    assert scalars["train/nbest_size"] == [3.0]
    assert 0 < scalars["train/oracle_errors"][0] <= scalars["train/nbest_errors"][0]
    assert scalars["train/nbest_calls"][0] > 1
    assert np.isfinite(scalars["train/mwer"]).all()
    assert len(scalars["train/nbest_share"]) == 1


@pytest.mark.parametrize(
    ("module", "flags", "status", "said"),
    [
        ("train", (), 2, "--config"),
        ("train", ("--config=nowhere.py",), 2, "nowhere.py"),
        ("train", ("--config=mtp", "--config.optim.step=1"), 2, "step"),
        ("train", ("--config=mtp", "--config.optim.steps=0"), 2, "config.optim.steps"),
        ("evaluate", ("--workdir=nowhere",), 1, "nowhere is no folder of a model"),
        (
            "evaluate",
            ("--workdir=nowhere", "--strategy=gredy"),
            2,
            "'gredy'; choose one of",
        ),
        ("evaluate", ("--workdir=nowhere", "--batch_size=0"), 2, "positive"),
        ("evaluate", ("--workdir=nowhere", "--beams=0"), 2, "--beams=0 must be positive"),
        ("evaluate", ("--workdir=nowhere", "--length_power=-1"), 2, "negative"),
    ],
)
def test_a_wrong_command_gets_one_sentence(module, flags, status, said):
    done = commands.run(module, *flags)
    assert done.status == status, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_noise_in_the_text_hits_its_share_and_nothing_else():
    tokens = np.full((50, 200), 7, np.int32)
    fed = np.asarray(noisy_tokens(jax.random.key(0), tokens, 0.5, 100))
    assert fed.min() >= 0
    assert fed.max() < 100
    assert abs(np.mean(fed != tokens) - 0.5 * 0.99) < 0.02
    np.testing.assert_array_equal(noisy_tokens(jax.random.key(0), tokens, 0.0, 100), tokens)
