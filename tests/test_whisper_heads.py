"""Heads that are added to a finished Whisper: its text stays, and they learn what it writes."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import (
    Augment,
    Config,
    ConfigError,
    Data,
    Evaluation,
    FrontEnd,
    Heads,
    Loss,
    Optim,
    Pretrained,
    Train,
    Whisper,
)
from mtp_jax.data import open_source
from mtp_jax.decoding import Greedy, Verify
from mtp_jax.distributed import sharding
from mtp_jax.evaluation.evaluate import evaluate
from mtp_jax.inference import greedy_text
from mtp_jax.inference.decoder_functions import bind_decoder, encode
from mtp_jax.inference.fallback import MAX_COMPRESSION, compression
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path, merge
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.training.loop import _open_data, train
from tests import commands
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.recordings import batch_of_folder, noise_folder, sentences

RATE, ROWS = 16_000, 12
ROOT = pathlib.Path(__file__).parents[1]


def config_of(folder, **changed):
    files = dict.fromkeys(("train", "dev", "test"), f"{folder}/audio.jsonl")
    config = Config(
        pretrained=Pretrained(model=str(FOLDER)),
        front_end=FrontEnd(flavour="whisper"),
        data=Data(
            **files,
            cache_dir=f"{folder}/cache",
            bucket_seconds=(0.4,),
            batch_size=ROWS,
            max_tokens=24,
            text="greedy",
        ),
        augment=Augment(speeds=(1.0,), freq_masks=0, time_masks=0),
        whisper=Whisper(cached=True),
        heads=Heads(count=3, layers=1, detached=True, vocabulary=400),
        loss=Loss(ctc=0.0),
        optim=Optim(
            steps=60, warmup_steps=5, learning_rate=2e-2, freeze=("whisper/*", "decoder/*")
        ),
        train=Train(dev_every=60, checkpoint_every=60, log_every=60),
        evaluation=Evaluation(strategies=("greedy", "verify"), batch_sizes=(ROWS,)),
    )
    return with_sizes(dataclasses.replace(config, **changed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of noise, whose transcripts say nothing of it."""
    return noise_folder(tmp_path_factory.mktemp("audio"), ROWS, 3000, 6000, text="none")


@pytest.fixture(scope="module")
def batch(folder):
    return batch_of_folder(folder, ROWS, 6400)


def untrained(folder, heads, dtype="float32"):
    """The golden model with random heads."""
    whole = load(open_model_folder(FOLDER))
    config = config_of(folder, heads=heads, train=Train(dtype=dtype))
    model = whole.model.clone(config=config)
    fresh = jax.tree.map(
        lambda x: x.unbox() if hasattr(x, "unbox") else x,
        init_params(model, jax.random.key(1)),
        is_leaf=lambda x: hasattr(x, "unbox"),
    )
    params = merge(fresh, whole.params)
    return Runner(model, params, whole.tokenizer, whole.mesh)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(count=4),
        # It is trained below, with one head less.
        pytest.param(Heads(count=4, layers=1, vocabulary=300), marks=pytest.mark.slow),
        Heads("independent", 3, layers=2),
        Heads("independent", 3, vocabulary=300),
        Heads("residual", 3, layers=1),
        Heads("serial", 4),
        Heads("serial", 3, layers=1, vocabulary=300),
    ],
)
def test_verify_is_greedy_whatever_the_heads_draft(folder, batch, heads):
    runner = untrained(folder, heads)
    greedy = runner.run(batch, Greedy(heads.count)).decoded
    verify = runner.run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert np.all(verify.calls <= greedy.calls)
    assert int(verify.proposed.sum()) > 0


def test_verify_is_greedy_in_bfloat16(folder, batch, monkeypatch):
    """Of the decoder too, which would run in float32 on a CPU."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    runner = untrained(folder, Heads(count=4, layers=1), "bfloat16")
    greedy = runner.run(batch, Greedy(4)).decoded
    verify = runner.run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert np.all(verify.calls <= greedy.calls)
    assert int(verify.length.sum()) > ROWS
    scores = jax.jit(
        lambda p, b: bind_decoder(runner.model, p, encode(runner.model, p, b)).prefill(4)
    ).eval_shape(runner.params, batch)
    assert (scores[0].dtype, scores[1].keys.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_heads_learn_from_audio_alone(folder, batch, tmp_path):
    config = config_of(folder)
    before = load(open_model_folder(FOLDER))
    workdir = Workdir(tmp_path / "run")
    workdir.claim(config)
    runner = train(config, workdir)
    after = by_path(runner.params)
    for path, x in by_path(before.params).items():  # nothing of the model has changed
        np.testing.assert_array_equal(x, after[path], err_msg=path)
    greedy = runner.run(batch, Greedy(3)).decoded
    verify = runner.run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    # The model repeats itself, and heads that have learnt that are right most of the time.
    assert int(verify.accepted.sum()) > 0.5 * int(verify.proposed.sum())
    assert int(verify.calls.sum()) < 0.7 * int(greedy.calls.sum())
    again = load(workdir)
    np.testing.assert_array_equal(again.run(batch, Verify()).decoded.calls, verify.calls)
    drafted = after["heads/tokens"]
    written = set(greedy.tokens[np.arange(24) < np.asarray(greedy.length)[:, None]].tolist())
    assert written <= set(drafted.tolist()) and len(set(drafted.tolist())) == 400
    saved = sum(x.size for path, x in after.items() if path.startswith("heads/"))
    assert saved == sum(x.size for path, x in after.items() if path not in again.imported)


@pytest.mark.parametrize("limit", [3, 24])
def test_labels_are_greedy_texts_that_end(folder, batch, tmp_path, monkeypatch, limit):
    """One that does not within its limit has none, and no other text is changed by the limit."""
    monkeypatch.setattr(greedy_text, "_limit", lambda batch, config: limit)
    config = dataclasses.replace(
        config_of(folder), data=dataclasses.replace(config_of(folder).data, cache_dir=str(tmp_path))
    )
    runner = greedy_text.pretrained_model(config, sharding.make_mesh(config.mesh))
    source = open_source(config.data.train, config.data, RATE)
    written = greedy_text.with_greedy_text(source, runner)
    greedy = runner.run(batch, Greedy()).decoded
    for row, utterance in enumerate(written.utterances):
        text = greedy.tokens[row, : greedy.length[row]].tolist()
        ends = text[-1] == runner.tokenizer.eos and len(text) <= limit
        repeats = compression(runner.tokenizer.decode(text[:-1])) > MAX_COMPRESSION
        assert utterance.tokens == (tuple(text[:-1]) if ends and not repeats else ())


def test_heads_learn_from_a_folder_of_audio(tmp_path, monkeypatch):
    """No file has a transcript, dev and test included; the long one is cut."""
    talks = tmp_path / "talks"
    (talks / "short").mkdir(parents=True)
    parts = [np.pad(wave, (0, RATE)) for wave in sentences(2)]
    soundfile.write(talks / "long.mp3", np.concatenate(parts), RATE)
    soundfile.write(talks / "short" / "a.flac", parts[0][:6000], RATE)
    (talks / "broken.wav").write_bytes(b"RIFF")
    config = config_of(
        tmp_path,
        data=Data(
            **dict.fromkeys(("train", "dev"), f"audio:{talks}"),
            test=f"audio:{talks}/short",
            cache_dir=f"{tmp_path}/cache",
            bucket_seconds=(0.4,),
            batch_size=4,
            max_tokens=24,
            text="greedy",
        ),
        optim=Optim(steps=2, warmup_steps=1, freeze=("whisper/*", "decoder/*")),
        train=Train(dev_every=2, checkpoint_every=2, log_every=2),
        evaluation=Evaluation(strategies=("greedy",), batch_sizes=(4,)),
    )
    workdir = Workdir(tmp_path / "run")
    workdir.claim(config)
    runner = train(config, workdir)
    report = json.loads(workdir.report.read_text())
    assert report["kept"] > 4 and report["skipped"]["unreadable audio"] == 1
    results = evaluate(runner, workdir, config.data.test, 1.0, workdir.path)
    assert {row["wer"] for row in results["rows"]} == {None}
    monkeypatch.setattr("mtp_jax.data.audio_folder.cut", None)  # nobody looks for voices again
    source, _ = _open_data(config)
    assert len(source.utterances) == report["kept"]


def test_evaluate_takes_a_whisper_as_it_is(folder, tmp_path, monkeypatch):
    """Results are written where the command runs, and nothing to the model's folder."""
    before = sorted(file.name for file in FOLDER.iterdir())
    monkeypatch.chdir(tmp_path)
    given = f"--model={FOLDER}", f"--data={folder}/audio.jsonl"
    done = commands.run("evaluate", *given, "--strategy=greedy", "--batch_size=4")
    assert done.status == 0, done.err
    (results,) = (tmp_path / "evaluations").rglob("results.json")
    rows = json.loads(results.read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["greedy"]
    assert sorted(file.name for file in FOLDER.iterdir()) == before
    refused = commands.run("evaluate", *given, "--strategy=threshold")
    assert refused.status == 2
    assert "need several heads" in refused.err and "Traceback" not in refused.err


def test_greedy_text_needs_the_model_that_writes_it():
    with pytest.raises(ConfigError, match=r"needs config\.pretrained\.model"):
        Config(data=Data(text="greedy"))
