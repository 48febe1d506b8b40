"""Heads that are added to a released speech LLM: its text stays, and they learn what it writes."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest
import soundfile

from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import (
    Augment,
    Config,
    ConfigError,
    Data,
    Decoder,
    Encoder,
    Evaluation,
    Heads,
    Lora,
    Loss,
    Optim,
    Pretrained,
    Tokenizer,
    Train,
    Whisper,
)
from mtp_jax.data import FeatureBatch, eval_batches, open_source
from mtp_jax.decoding import Greedy, Verify
from mtp_jax.inference.decoder_functions import encode
from mtp_jax.inference.encoder_cache import with_encoder_cache
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import build
from mtp_jax.models.initialization import init_params
from mtp_jax.models.params import by_path, merge
from mtp_jax.pretrained import PretrainedError
from mtp_jax.pretrained.exported import export
from mtp_jax.pretrained.sizes import completed
from mtp_jax.tokenizer import TokenizerError
from mtp_jax.training.loop import train
from tests.commands import run
from tests.pretrained import GOLDEN_WHISPER
from tests.recordings import batch_of_folder, noise_folder, sentences
from tests.speech_llms import GOLDEN, NAMES, batch_of, golden_runner, told
from tests.test_training import Killed, kill
from tests.test_training import train as train_until

RATE, ROWS, LENGTH = 16_000, 8, 24
MODEL = "voxtral"  # the golden one whose texts end
LATENT = Heads("latent", 4, layers=1, detached=True, vocabulary=64)
SERIAL = Heads("serial", 4, detached=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of noise, of which no text is known."""
    return noise_folder(tmp_path_factory.mktemp("audio"), ROWS, 6000, 12_800)


@pytest.fixture(scope="module")
def batch(folder):
    return batch_of_folder(folder, ROWS, 12_800)


def config_of(name, folder, **changed):
    config = Config(
        pretrained=Pretrained(model=str(GOLDEN / name)),
        data=Data(
            **dict.fromkeys(("train", "dev", "test"), f"{folder}/audio.jsonl"),
            cache_dir=f"{folder}/cache",
            bucket_seconds=(0.8,),
            batch_size=ROWS,
            max_tokens=LENGTH,
            text="greedy",
        ),
        augment=Augment(speeds=(1.0,), freq_masks=0, time_masks=0),
        whisper=Whisper(cached=True),
        heads=SERIAL,
        loss=Loss(ctc=0.0),
        optim=Optim(steps=60, warmup_steps=5, learning_rate=2e-2, freeze=("*", "!heads/*")),
        train=Train(dev_every=60, checkpoint_every=60, log_every=60),
        evaluation=Evaluation(strategies=("greedy", "verify"), batch_sizes=(ROWS,)),
    )
    return completed(dataclasses.replace(config, **changed))


# Heads of another kind are exported, asked for a text and moved to another model alike.
SERIAL_FIRST = pytest.mark.parametrize(
    "trained",
    [pytest.param(LATENT, marks=pytest.mark.slow), SERIAL],
    indirect=True,
    ids=["latent", "serial"],
)


@pytest.fixture(scope="module", params=[LATENT, SERIAL], ids=["latent", "serial"])
def trained(request, folder, tmp_path_factory):
    """A workdir, its parameters by path, and which of them are those of the model."""
    workdir = Workdir(tmp_path_factory.mktemp("heads") / "run")
    config = config_of(MODEL, folder, heads=request.param)
    workdir.claim(config)
    runner = train(config, workdir)
    return workdir, by_path(runner.params), runner.imported


def test_heads_learn_from_audio_alone(trained, batch):
    """Greedy is that of the folder, as it is without heads."""
    workdir, after, imported = trained
    for path, x in by_path(load(open_model_folder(GOLDEN / MODEL)).params).items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)  # nothing of it has changed
    own = {path for path in after if path not in imported}
    assert own and all(path.startswith("heads/") for path in own)
    assert not (workdir.path / "tokenizer.json").exists()
    again = load(workdir)
    assert set(again.params["heads"]) == {path.split("/")[1] for path in own}
    greedy = golden_runner(MODEL).run_once(batch, Greedy(4), LENGTH).decoded
    verify = again.run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    learnt = np.asarray(greedy.length) < LENGTH  # of a text without an end nothing is
    assert np.sum(learnt) > 2
    assert np.sum(verify.calls[learnt]) < 0.6 * np.sum(greedy.calls[learnt])


@SERIAL_FIRST
def test_an_export_holds_what_was_added(trained, batch, tmp_path, caplog):
    workdir, after, imported = trained
    out = tmp_path / "out"
    done = run("export", f"--model={workdir.path}", f"--output={out}", "--pretrained=hf://a/b")
    assert done.status == 0, done.err
    names = {file.name for file in out.iterdir()}
    assert names == {"config.json", "parts.json", "digests.json", "heads.safetensors"}
    again = load(Workdir(out), pretrained=str(GOLDEN / MODEL))
    assert by_path(again.params).keys() == after.keys() and again.imported == imported
    ours, theirs = (each.run(batch, Verify()).decoded for each in (load(workdir), again))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not caplog.records


@SERIAL_FIRST
def test_from_a_workdir_to_a_text_in_two_commands(trained, tmp_path):
    workdir, *_ = trained
    talk, out = tmp_path / "talk.wav", tmp_path / "out"
    soundfile.write(talk, sentences(1)[0][: 3 * RATE // 2], RATE)
    done = run(
        *("export", f"--model={workdir.path}", f"--output={out}", "--dtype=int8"),
        "--pretrained=hf://a/b",
    )
    assert done.status == 0, done.err
    found = [
        run("transcribe", talk, f"--model={model}", "--batch_size=2", "--language=de", *flags)
        for model, *flags in (
            (workdir.path, "--strategy=greedy"),
            (workdir.path,),
            (out, f"--pretrained={GOLDEN / MODEL}"),
        )
    ]
    assert [each.status for each in found] == [0, 0, 0], found[-1].err
    assert len({each.out for each in found}) == 1 and found[0].out.strip()


@pytest.mark.parametrize("name", NAMES)
def test_kept_states_are_those_of_a_step(name, folder):
    """In float16, and as many of each row."""
    runner = golden_runner(name)
    config = config_of(MODEL, folder)
    config = dataclasses.replace(
        runner.model.config, data=config.data, whisper=config.whisper, train=config.train
    )
    kept = Runner(
        build(config, runner.model.vocabulary),
        runner.params,
        runner.tokenizer,
        runner.mesh,
        runner.imported,
    )
    source = open_source(config.data.train, config.data, RATE)
    cached = with_encoder_cache(source, kept)
    (plain,), (features,) = (
        list(eval_batches(each, kept.tokenizer, config, ROWS)) for each in (source, cached)
    )
    assert isinstance(features, FeatureBatch) and not isinstance(plain, FeatureBatch)
    np.testing.assert_array_equal(features.index, plain.index)
    found = jax.jit(lambda params, batch: encode(kept.model, params, batch))
    ours, theirs = (found(kept.params, each) for each in (features, plain))
    np.testing.assert_array_equal(ours.length, theirs.length)
    for row, rows in enumerate(np.asarray(ours.length)):
        expected = np.asarray(theirs.audio[row, :rows])
        np.testing.assert_allclose(
            ours.audio[row, :rows], expected, rtol=0, atol=4e-3 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("voxtral", Heads("independent", 3, layers=1, vocabulary=100)),
        ("qwen3_asr", Heads("latent", 4, layers=2)),
        ("glmasr", Heads("serial", 4, vocabulary=100)),
        ("voxtral", Heads("serial", 3, layers=1)),
    ],
)
def test_verify_is_greedy_whatever_the_heads_draft(name, heads):
    whole, given = golden_runner(name), told(name, batch_of(name))
    config = dataclasses.replace(whole.model.config, heads=heads)
    model = build(config, whole.model.vocabulary)
    fresh = jax.tree.map(
        lambda x: x.unbox() if hasattr(x, "unbox") else x,
        jax.jit(lambda: init_params(model, jax.random.key(1)))(),
        is_leaf=lambda x: hasattr(x, "unbox"),
    )
    params = merge({"heads": fresh["heads"]}, load(open_model_folder(GOLDEN / name)).params)
    runner = Runner(model, params, whole.tokenizer, whole.mesh)
    greedy = runner.run_once(given, Greedy(heads.count), LENGTH).decoded
    verify = runner.run_once(given, Verify(), LENGTH).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert np.all(verify.calls <= greedy.calls)
    assert int(verify.proposed.sum()) > 0


def test_killed_it_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    """In bfloat16, in which the model is kept then; heads are not."""
    config = config_of(
        "qwen3_asr",
        folder,
        optim=Optim(steps=4, warmup_steps=1, freeze=("*", "!heads/*")),
        train=Train(dev_every=4, checkpoint_every=2, log_every=2, dtype="bfloat16"),
    )
    straight = by_path(train_until(config, tmp_path / "straight").params["heads"])
    assert {str(x.dtype) for x in straight.values()} == {"float32"}
    with pytest.raises(Killed):
        train_until(config, tmp_path / "killed", monkeypatch, 3, kill)
    for path, x in by_path(train_until(config, tmp_path / "killed").params["heads"]).items():
        np.testing.assert_array_equal(x, straight[path], err_msg=path)
    given = told("qwen3_asr", batch_of("qwen3_asr"))
    greedy = golden_runner("qwen3_asr").run_once(given, Greedy(4), LENGTH).decoded
    verify = load(Workdir(tmp_path / "killed")).run(given, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)


def changed_folder(path, **fields):
    """A golden model as if it had been fine-tuned, with other sizes in its config.json."""
    shutil.copytree(GOLDEN / MODEL, path, ignore=shutil.ignore_patterns("*.npz"))
    if fields:
        values = json.loads((path / "config.json").read_text())
        values["text_config"] |= fields
        (path / "config.json").write_text(json.dumps(values))
    (file,) = sorted(path.glob("*.safetensors"))[-1:]
    content = bytearray(file.read_bytes())
    content[-2] ^= 1  # of a float32
    file.write_bytes(content)
    return path


@SERIAL_FIRST
def test_another_model_is_taken_if_it_is_of_the_same_size(trained, batch, tmp_path, caplog):
    workdir, *_ = trained
    tuned = changed_folder(tmp_path / "tuned")
    greedy = load(open_model_folder(tuned)).run_once(batch, Greedy(4), LENGTH).decoded
    with caplog.at_level(logging.WARNING, "mtp_jax"):
        runner = load(workdir, pretrained=str(tuned))
    (record,) = caplog.records
    assert "holds other weights than those that" in record.getMessage()
    np.testing.assert_array_equal(runner.run(batch, Verify()).decoded.tokens, greedy.tokens)


@SERIAL_FIRST
def test_another_model_is_refused_if_it_is_of_another_size(trained, tmp_path):
    workdir, *_ = trained
    smaller = changed_folder(tmp_path / "smaller", num_hidden_layers=1)
    for source, said in (
        (smaller, r"speech LLM of another size.*decoder\.layers: 2 -> 1"),
        (GOLDEN / "qwen3_asr", r"speech LLM of another size.*speech_llm\.family"),
        (GOLDEN_WHISPER, "needs its own tokenizer"),
    ):
        with pytest.raises((PretrainedError, TokenizerError), match=said):
            load(workdir, pretrained=str(source))


def test_lora_of_the_decoder_is_exported_merged(folder, batch, tmp_path):
    """It is learnt from transcripts; nothing of the encoder is."""
    said = tmp_path / "said.jsonl"
    lines = [json.loads(line) for line in (folder / "audio.jsonl").read_text().splitlines()]
    lines = [
        line | {"text": "the and", "audio_filepath": str(folder / line["audio_filepath"])}
        for line in lines
    ]
    said.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = config_of(MODEL, folder)
    config = config_of(
        MODEL,
        folder,
        decoder=Decoder(lora=Lora(rank=2)),
        data=dataclasses.replace(
            plain.data, text="as_is", **dict.fromkeys(("train", "dev", "test"), str(said))
        ),
        optim=Optim(steps=4, warmup_steps=1, learning_rate=0.1, freeze=("*", "!*/lora_?")),
        train=Train(dev_every=4, checkpoint_every=4, log_every=4),
    )
    workdir = Workdir(tmp_path / "run")
    workdir.claim(config)
    params = by_path(train(config, workdir).params)
    assert any(np.any(x != 0) for path, x in params.items() if path.endswith("lora_b"))
    runner = load(workdir)
    export(runner, workdir, tmp_path / "out")
    again = load(Workdir(tmp_path / "out"))
    assert again.model.config.decoder.lora.rank == 0
    expected = runner.run(batch, Greedy(4)).decoded.tokens
    np.testing.assert_array_equal(again.run(batch, Greedy(4)).decoded.tokens, expected)
    tuned = changed_folder(tmp_path / "tuned")
    with pytest.raises(WorkdirError, match=r"config\.pretrained\.model no longer holds"):
        load(Workdir(tmp_path / "out"), pretrained=str(tuned))


def test_what_does_not_suit_the_model_is_refused(folder):
    data = config_of(MODEL, folder).data
    with pytest.raises(ConfigError, match="need 1113 positions, and the model has 1024"):
        config_of(MODEL, folder, data=dataclasses.replace(data, max_tokens=1039))
    with pytest.raises(ConfigError, match=r"leaves CTC 6\.5 of Qwen3-ASR's frames per second"):
        config_of(
            "qwen3_asr",
            folder,
            tokenizer=Tokenizer(ctc_vocab_size=18),
            encoder=Encoder(subsampling=(2,)),
            loss=Loss(ctc=1.0),
        )
