"""Runs that begin with pretrained parts or with another run, their export, the encoder cache."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import (
    Adaptor,
    Augment,
    Config,
    ConfigError,
    Data,
    Decoder,
    Encoder,
    Evaluation,
    Heads,
    Lora,
    Optim,
    Pretrained,
    Train,
    Whisper,
)
from mtp_jax.config import Tokenizer as TokenizerConfig
from mtp_jax.data import Batch, FeatureBatch, open_source
from mtp_jax.decoding import Greedy, Verify
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.evaluation.task import Task
from mtp_jax.inference import encoder_cache
from mtp_jax.inference.load import load
from mtp_jax.models.build import make_model
from mtp_jax.models.params import by_path
from mtp_jax.pretrained import PretrainedError, exported
from mtp_jax.pretrained.exported import export
from mtp_jax.pretrained.sizes import completed
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError
from mtp_jax.training import loop
from mtp_jax.training.initialization import starting_point
from tests.pretrained_parts import ROWS, V, write_parts

pytestmark = pytest.mark.usefixtures("_steps_are_shared")
STEPS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, cache) -> Path:
    """A folder with a Whisper encoder and a LLaMA decoder, as Hugging Face keeps them."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder, cache)
    return folder


@pytest.fixture(scope="module")
def config(parts, cache) -> Config:
    """Whisper frozen and cached, the decoder frozen but for LoRA, a Conformer between them."""
    return Config(
        pretrained=Pretrained(str(parts / "whisper"), str(parts / "llama")),
        data=Data(
            train="embedded/tiny:train",
            dev="embedded/tiny:dev",
            test="embedded/tiny:test",
            cache_dir=str(cache),
            bucket_seconds=(3.2,),
            batch_size=8,
        ),
        augment=Augment(speeds=(0.95, 1.0)),
        whisper=Whisper(cached=True),
        encoder=Encoder(subsampling=(4,), width=16, layers=1, heads=2, kernel=3, feedforward=1),
        adaptor=Adaptor(ctc_compression=True),
        decoder=Decoder(lora=Lora(rank=2)),
        heads=Heads(count=2),
        optim=Optim(
            steps=STEPS,
            warmup_steps=1,
            learning_rate=1e-2,
            freeze=("whisper/*", "decoder/*", "!*/lora_?"),
        ),
        train=Train(log_every=2, dev_every=STEPS, checkpoint_every=2),
        evaluation=Evaluation(batch_sizes=(8,), taus=(0.5,)),
    )


def train(config: Config, path: Path, **groups) -> Workdir:
    """Trains in `path` as the command does; `groups` replace those of `config`."""
    config = completed(dataclasses.replace(config, **groups))
    workdir = Workdir(path)
    workdir.claim(config)
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Workdir:
    return train(config, tmp_path_factory.mktemp("run"))


def same(ours, theirs) -> bool:
    ours, theirs = by_path(jax.device_get(ours)), by_path(jax.device_get(theirs))
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def decoded(runner, strategy=None):
    """Tokens of the test split."""
    c = runner.model.config
    source = open_source("embedded/tiny:test", c.data, c.front_end.sample_rate)
    batches = Task.of(source, runner).batches(8)
    return [
        h.tokens for h in decode_source(runner, source, batches, strategy or Greedy()).hypotheses
    ]


def test_the_frozen_parts_are_those_that_were_given_and_are_not_saved(trained, parts):
    runner = load(trained)
    params = jax.device_get(runner.params)
    assert runner.model.vocabulary.size == V
    given = load_file(parts / "llama" / "model.safetensors")
    np.testing.assert_array_equal(
        params["decoder"]["embedding"], given["model.embed_tokens.weight"][:V]
    )
    gate = params["decoder"]["layers"]["gate"]
    np.testing.assert_array_equal(gate["kernel"][1], given["model.layers.1.mlp.gate_proj.weight"].T)
    assert np.any(gate["lora_b"])
    left_out = trained.read_parts()["left_out"]
    assert {path.split("/")[0] for path in left_out} == {"whisper", "decoder"}
    assert not any("lora" in path for path in left_out)
    saved = [file.read_text() for file in trained.path.rglob("_METADATA")]
    assert len(saved) == 3
    for names in saved:
        assert "lora_a" in names
        assert "embedding" not in names and "whisper" not in names


def test_killed_between_two_checkpoints_it_goes_on_to_the_same_bits(
    trained, config, tmp_path, monkeypatch
):
    make = loop.make_train_step

    def making(*args):
        step_fn = make(*args)

        def step(state, batch):
            if int(state.step) == 3:
                raise KeyboardInterrupt
            return step_fn(state, batch)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", making)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    assert same(load(train(config, tmp_path)).params, load(trained).params)


def test_weights_that_changed_are_refused(trained, parts, tmp_path):
    run, other = tmp_path / "run", tmp_path / "whisper"
    shutil.copytree(trained.path, run)
    shutil.copytree(parts / "whisper", other)
    weights = load_file(other / "model.safetensors")
    weights["model.encoder.layer_norm.bias"] += 1
    save_file(weights, other / "model.safetensors")
    written = json.loads((run / "config.json").read_text())
    written["pretrained"]["encoder"] = str(other)
    (run / "config.json").write_text(json.dumps(written))
    with pytest.raises(WorkdirError, match=r"config\.pretrained\.encoder no longer holds"):
        load(Workdir(run))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(config, cache, tmp_path):
    texts = [u.text for u in open_source("embedded/tiny:train", config.data, 16_000).utterances]
    Tokenizer.train(texts, tmp_path / "tokenizer.model", ROWS + 2)
    given = TokenizerConfig(model=str(tmp_path / "tokenizer.model"))
    with pytest.raises(TokenizerError, match=f"tokenizer of {ROWS + 2} tokens does not fit"):
        train(config, tmp_path / "run", tokenizer=given)


def test_the_export_is_the_same_model(trained, parts, tmp_path):
    runner, used = load(trained), Workdir(tmp_path / "float32")
    used.path.mkdir()
    others = [used.tau, used.confidence, *(used.path / n for n in ("tokenizer.json", CTC_NAME))]
    for file in others:
        file.write_text("of the model that was here")
    export(runner, trained, tmp_path / "float32")
    assert not any(file.exists() for file in others)
    with pytest.raises(CheckpointError, match="is the model itself, or a workdir"):
        export(runner, trained, trained.path)
    loaded = load(Workdir(tmp_path / "float32"))
    assert loaded.model.config.decoder.lora.rank == 0
    assert loaded.model.config.pretrained == Pretrained(encoder=str(parts / "whisper"))
    export(loaded, Workdir(tmp_path / "float32"), tmp_path / "again")
    assert same(load(Workdir(tmp_path / "again")).params, loaded.params)
    ours, theirs = by_path(runner.params), by_path(loaded.params)
    for path, x in theirs.items():
        if "lora" not in "".join(p for p in ours if p.startswith(path.removesuffix("kernel"))):
            np.testing.assert_array_equal(x, ours[path])
    assert decoded(loaded) == decoded(runner)
    export(runner, trained, tmp_path / "half", "float16")
    half = by_path(load(Workdir(tmp_path / "half")).params)
    for path, x in theirs.items():
        np.testing.assert_allclose(half[path], x, rtol=1e-3, atol=1e-4)


def test_an_export_holds_the_encoder_s_matrices_that_lora_has_changed(config, tmp_path):
    optim = dataclasses.replace(config.optim, freeze=("whisper/*", "!*/lora_?"))
    tuned = Whisper(lora=Lora(rank=2))
    given = TokenizerConfig(model=f"{config.pretrained.decoder}/tokenizer.model")
    trained = train(config, tmp_path / "run", whisper=tuned, optim=optim, tokenizer=given)
    runner = load(trained)
    listening = by_path(runner.params["whisper"])
    assert any(np.any(x) for path, x in listening.items() if path.endswith("lora_b"))
    export(runner, trained, tmp_path / "export")
    loaded = load(Workdir(tmp_path / "export"))
    _, whole = exported.merged(runner.model.config, jax.device_get(runner.params))
    assert same(loaded.params, whole)
    assert loaded.model.config.tokenizer == TokenizerConfig()  # it has its own
    left_out = Workdir(tmp_path / "export").read_parts()["left_out"]
    assert left_out and set(left_out) < set(trained.read_parts()["left_out"])


def test_the_encoder_may_lie_elsewhere(trained, parts, config, tmp_path):
    """In another format too: it is the values that count."""
    runner = load(trained)
    export(runner, trained, tmp_path / "export", source=str(tmp_path / "theirs"))
    with pytest.raises(PretrainedError, match="theirs does not exist"):
        load(Workdir(tmp_path / "export"))
    elsewhere = str(tmp_path / "mine")
    shutil.copytree(parts / "whisper", elsewhere)
    loaded = load(Workdir(tmp_path / "export"), pretrained=elsewhere)
    assert decoded(loaded) == decoded(runner)
    begun = dataclasses.replace(
        config,
        init_from=str(tmp_path / "export"),
        pretrained=dataclasses.replace(config.pretrained, encoder=elsewhere),
    )
    assert completed(begun).pretrained.encoder == elsewhere
    hub = dataclasses.replace(begun, pretrained=Pretrained(encoder="hf://owner/name"))
    assert completed(hub).pretrained.encoder == str(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["model", "speech", "heads"])
def test_an_export_with_flipped_bytes_is_refused(trained, tmp_path, name):
    export(load(trained), trained, tmp_path)
    load(Workdir(tmp_path))
    file = tmp_path / f"{name}.safetensors"
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    content[np.linspace(len(content) // 2, len(content) - 1, 64).astype(int)] ^= 0x10
    file.write_bytes(content.tobytes())
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is damaged, or was changed"):
        load(Workdir(tmp_path))


def test_an_export_of_an_earlier_version_is_read_but_not_with_nan(trained, tmp_path):
    export(load(trained), trained, tmp_path)
    (tmp_path / "digests.json").unlink()
    load(Workdir(tmp_path))
    tensors = load_file(tmp_path / "heads.safetensors")
    name = next(iter(tensors))
    tensors[name].flat[-1] = np.nan
    save_file(tensors, tmp_path / "heads.safetensors")
    with pytest.raises(PretrainedError, match=f"{name} holds numbers that are not finite"):
        load(Workdir(tmp_path))


def test_an_export_of_other_tensors_is_refused(trained, tmp_path):
    export(load(trained), trained, tmp_path)
    (tmp_path / "digests.json").unlink()
    tensors = load_file(tmp_path / "speech.safetensors")
    save_file(
        {k: x for k, x in tensors.items() if k != "ctc/bias"}, tmp_path / "speech.safetensors"
    )
    with pytest.raises(CheckpointError, match="ctc/bias is missing, left over or of another"):
        load(Workdir(tmp_path))
    (tmp_path / "speech.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"speech\.safetensors cannot be read"):
        load(Workdir(tmp_path))
    (tmp_path / "heads.safetensors").unlink()
    save_file(tensors, tmp_path / "speech.safetensors")
    with pytest.raises(WorkdirError, match="an export that is not whole: export again"):
        load(Workdir(tmp_path))


HEADS_ONLY = ("*", "!heads/*")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("export", "latent"),
        ("workdir", "independent"),
        pytest.param("export", "independent", marks=pytest.mark.slow),
        pytest.param("workdir", "latent", marks=pytest.mark.slow),
    ],
)
def test_heads_added_to_a_frozen_model_leave_its_greedy_output(
    trained, config, tmp_path, kind, source
):
    begun = trained
    if source == "export":  # which has LoRA merged: another would be new
        config = dataclasses.replace(config, decoder=Decoder())
        export(load(trained), trained, tmp_path / "export")
        begun = Workdir(tmp_path / "export")
    longer = train(
        config,
        tmp_path / "longer",
        init_from=str(begun.path),
        heads=Heads(kind, 4, layers=1 if source == "export" else 0),
        optim=dataclasses.replace(config.optim, freeze=HEADS_ONLY),
    )
    before, after = load(begun), load(longer)
    old, new = dict(before.params), dict(after.params)
    assert old.pop("heads")["kernel"].shape[0] == 1
    kernel = new.pop("heads")["kernel"]
    assert kernel.shape[0] == 3
    assert not np.array_equal(kernel[0], kernel[1])
    assert same(old, new)
    assert decoded(after) == decoded(before) == decoded(after, Verify())
    export(before, begun, tmp_path / "before")
    export(after, longer, tmp_path / "after")
    listening = ((tmp_path / name / "speech.safetensors") for name in ("before", "after"))
    assert len({file.read_bytes() for file in listening}) == 1


@pytest.mark.parametrize("kind", ["latent", "independent"])
def test_added_heads_start_at_zero(trained, config, tmp_path, kind):
    longer = dataclasses.replace(config, init_from=str(trained.path), heads=Heads(kind, 4))
    workdir, longer = Workdir(tmp_path), completed(longer)
    workdir.claim(longer)
    tokenizer = Tokenizer.load(trained.tokenizer)
    begun, _ = starting_point(
        make_model(longer, tokenizer), tokenizer, workdir, make_mesh(longer.mesh)
    )
    kernel = begun["heads"]["kernel"]
    assert kernel.shape[0] == 3
    assert not np.any(kernel)


def test_sizes_and_tokenizer_come_from_where_a_run_begins(trained, config, tmp_path):
    other = dataclasses.replace(
        config,
        pretrained=Pretrained(),
        whisper=Whisper(cached=True),
        encoder=Encoder(width=32, dropout=0.1),
        decoder=Decoder(width=24),
        heads=config.heads,
    )
    begun = dataclasses.replace(other, init_from=str(trained.path))
    done = completed(begun)
    assert done.encoder.width == 16 and done.encoder.dropout == 0.1
    assert done.decoder.lora == Lora(rank=2)
    workdir = train(begun, tmp_path, optim=dataclasses.replace(config.optim, learning_rate=1e-9))
    np.testing.assert_allclose(
        load(workdir).params["heads"]["kernel"], load(trained).params["heads"]["kernel"], atol=1e-6
    )
    assert (tmp_path / "tokenizer.model").read_bytes() == trained.tokenizer.read_bytes()


def first_batch(source, runner):
    return next(iter(Task.of(source, runner).batches(4)))


def cached_source(config, runner, split="test"):
    source = open_source(f"embedded/tiny:{split}", config.data, 16_000)
    return encoder_cache.with_encoder_cache(source, runner, config.augment.speeds)


def files(config) -> list[Path]:
    folder = Path(config.data.cache_dir) / "encoder"
    return sorted(file for file in folder.rglob("*") if file.suffix in (".f16", ".jsonl"))


def test_cached_features_are_those_of_the_encoder(trained):
    runner = load(trained)
    c = runner.model.config
    source = cached_source(c, runner)
    plain = open_source("embedded/tiny:test", c.data, 16_000)
    ours, theirs = (first_batch(s, runner) for s in (source, plain))
    assert type(ours) is FeatureBatch and type(theirs) is Batch
    np.testing.assert_array_equal(ours.audio_length, theirs.audio_length)
    features, length = encoder_cache.speech_features(runner.model, runner.params, theirs)
    assert ours.audio.shape == features.shape
    for row, n in enumerate(length):
        np.testing.assert_allclose(ours.audio[row, :n], features[row, :n], rtol=2e-3, atol=2e-3)
        assert not np.any(ours.audio[row, n:])
    _, again = encoder_cache.speech_features(runner.model, runner.params, ours)
    np.testing.assert_array_equal(again, length)


def test_what_is_cached_is_not_made_again(trained, monkeypatch):
    runner = load(trained)
    c = runner.model.config
    cached_source(c, runner)
    before = [file.read_bytes() for file in files(c)]
    monkeypatch.setattr(encoder_cache, "_encoded", None)  # nobody may call it
    source = cached_source(c, runner)
    assert source.features.read(0, 0.95)[1] > source.features.read(0, 1.0)[1]
    assert [file.read_bytes() for file in files(c)] == before


def test_a_cache_cut_anywhere_is_made_whole(trained, tmp_path):
    runner = load(trained)
    c = runner.model.config
    source = cached_source(c, runner)
    folder = files(c)[0].parent
    expected = [np.array(source.features.read(i, 1.0)[0]) for i in range(3)]
    for name, share in (("features.f16", 0.4), ("index.jsonl", 0.55), ("features.f16", 0.0)):
        file = folder / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        source = cached_source(c, runner)
        for i, features in enumerate(expected):
            np.testing.assert_array_equal(source.features.read(i, 1.0)[0], features)


def test_opening_a_cache_that_another_process_writes_to_changes_nothing(tmp_path):
    def features(value):
        return np.full((3, 4), value, np.float16)

    writer = encoder_cache.EncoderCache(tmp_path, 4)
    with writer.writing():
        writer.add("one", features(1), 480)
        for name, begun in (
            ("features.f16", features(2).tobytes()[:9]),
            ("index.jsonl", b'["two"'),
        ):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + begun)
        before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
        reader = encoder_cache.EncoderCache(tmp_path, 4)
        assert "one" in reader and "two" not in reader
        assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == before
    with writer.writing():  # the next one to write takes away what was written in part
        writer.add("three", features(3), 480)
    for cache in (reader, writer, encoder_cache.EncoderCache(tmp_path, 4)):
        np.testing.assert_array_equal(cache.read("one")[0], features(1))
    np.testing.assert_array_equal(cache.read("three")[0], features(3))


def test_other_audio_is_another_entry_and_another_encoder_another_cache(trained, parts, tmp_path):
    runner = load(trained)
    c = runner.model.config
    before = len(files(c)[1].read_text().splitlines())
    source = open_source("embedded/tiny:test", c.data, 16_000)
    louder = dataclasses.replace(
        source, waveform=lambda i: source.waveform(i) * np.int16(2), digest=None
    )
    encoder_cache.with_encoder_cache(louder, runner)
    assert len(files(c)[1].read_text().splitlines()) == before + len(source.utterances)
    ours = encoder_cache._folder(c, "one")
    assert ours != encoder_cache._folder(c, "other")
    padded = dataclasses.replace(c, whisper=dataclasses.replace(c.whisper, padded=True))
    assert ours != encoder_cache._folder(padded, "one")


def test_a_cache_needs_a_frozen_encoder(config, tmp_path):
    with pytest.raises(
        ConfigError, match=r"needs whisper/\*, LoRA included, among config\.optim\.freeze"
    ):
        train(config, tmp_path, optim=dataclasses.replace(config.optim, freeze=()))


def test_on_a_padded_window_neither_bucket_nor_neighbours_matter(trained):
    runner = load(trained)
    c = runner.model.config
    padded = dataclasses.replace(c, whisper=dataclasses.replace(c.whisper, padded=True))
    model = runner.model.clone(config=padded)
    source = open_source("embedded/tiny:test", c.data, 16_000)
    batch = first_batch(source, runner)
    longer = batch._replace(audio=np.pad(batch.audio, ((0, 0), (0, 3200))))
    ours, length = encoder_cache.speech_features(model, runner.params, batch)
    theirs, same_length = encoder_cache.speech_features(model, runner.params, longer)
    np.testing.assert_array_equal(length, same_length)
    for row, n in enumerate(length):
        np.testing.assert_allclose(ours[row, :n], theirs[row, :n], rtol=1e-4, atol=1e-5)
