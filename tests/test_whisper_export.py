"""What was added to a Whisper as a folder, beside whichever copy of the Whisper is at hand."""

from __future__ import annotations

import json
import logging
import shutil
import types

import jax
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

import mtp_jax
from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import (
    Config,
    Data,
    Encoder,
    Heads,
    Lora,
    Pretrained,
    Tokenizer,
    WhisperDecoder,
)
from mtp_jax.data import Batch
from mtp_jax.decoding import Greedy, Verify
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import model_digest, open_model_folder
from mtp_jax.models.build import make_model
from mtp_jax.models.params import by_path
from mtp_jax.pretrained import PretrainedError
from mtp_jax.pretrained.exported import export
from mtp_jax.pretrained.int8 import SCALE, from_int8, to_int8
from mtp_jax.pretrained.sizes import completed
from mtp_jax.pretrained.whisper_decoder import whisper_decoder_architecture, whisper_model_digest
from mtp_jax.tokenizer import CTC_NAME, TokenizerError
from mtp_jax.training.initialization import starting_point
from mtp_jax.training.run_tokenizer import open_tokenizer
from tests.commands import run
from tests.models import whisper_workdir
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.pretrained import (
    tensors_of,
    whisper_folder,
    whole_whisper_variables,
    write_ctranslate2,
)
from tests.recordings import RATE, sentences

HUB = "hf://openai/whisper-base"  # of which the tests have nothing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return whisper_workdir(tmp_path_factory.mktemp("heads") / "run")


@pytest.fixture(scope="module")
def runner(trained):
    return load(trained)


@pytest.fixture(scope="module")
def exported(trained, runner, tmp_path_factory):
    """Names the Hub, so that whoever loads it says where the Whisper is."""
    folder = tmp_path_factory.mktemp("exported")
    export(runner, trained, folder, "float16", HUB)
    return Workdir(folder)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return Batch(
        audio=rng.normal(scale=4000, size=(4, 6000)).astype(np.int16),
        audio_length=np.array([6000, 5000, 4000, 3000], np.int32),
        tokens=np.zeros((4, 0), np.int32),
        token_length=np.zeros(4, np.int32),
        index=np.arange(4, dtype=np.int32),
    )


def changed_whisper(path, name="model.decoder.layers.1.fc1.bias", by=0.3):
    """The golden Whisper as if it had been fine-tuned."""
    weights = tensors_of(FOLDER)
    return whisper_folder(path, weights | {name: weights[name] + np.float32(by)})


def of_size(path, **fields):
    """The golden Whisper with other sizes in its config, and the weights that fit them."""
    weights = tensors_of(FOLDER)
    embedding = "model.decoder.embed_tokens.weight"
    if "vocab_size" in fields:
        rows = np.zeros((fields["vocab_size"], weights[embedding].shape[1]), np.float32)
        weights[embedding] = rows
    if "decoder_layers" in fields:
        weights = {k: x for k, x in weights.items() if "decoder.layers.1." not in k}
    folder = whisper_folder(path, weights)
    change(folder / "config.json", **fields)
    change(folder / "generation_config.json", alignment_heads=None)  # some are of both layers
    return folder


def change(file, **fields):
    """Gives a JSON file other fields; None takes one away."""
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_an_export_holds_nothing_of_the_whisper(exported):
    names = {file.name for file in exported.path.iterdir()}
    assert names == {"config.json", "parts.json", "digests.json", "heads.safetensors"}
    assert all(path.startswith("heads/") for path in load_file(exported.heads))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 1e-2)])
def test_the_export_is_the_same_model(trained, runner, batch, tmp_path, dtype, error):
    export(runner, trained, tmp_path, dtype)
    again = load(Workdir(tmp_path))
    ours, theirs = by_path(runner.params), by_path(again.params)
    assert ours.keys() == theirs.keys()
    assert load_file(tmp_path / "heads.safetensors")["heads/tokens"].dtype == np.int32
    for path, x in ours.items():
        allowed = error * np.abs(x).max() if path.startswith("heads/") else 0
        np.testing.assert_allclose(theirs[path], x, rtol=0, atol=allowed, err_msg=path)
    greedy = runner.run(batch, Greedy(3)).decoded
    verify = again.run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    export(again, Workdir(tmp_path), tmp_path / "again", dtype)  # an export of an export
    assert load_file(tmp_path / "again" / "heads.safetensors").keys() == (
        load_file(tmp_path / "heads.safetensors").keys()
    )
    assert Workdir(tmp_path / "again").read_parts() == Workdir(tmp_path).read_parts()


def test_a_ctc_head_and_its_labels_go_along(tmp_path):
    workdir = whisper_workdir(
        tmp_path / "run",
        tokenizer=Tokenizer(ctc_vocab_size=48),
        encoder=Encoder(subsampling=(1,), width=16, layers=1, heads=2, kernel=3),
    )
    runner = load(workdir)
    export(runner, workdir, tmp_path / "out", "int8")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= {"heads.safetensors", CTC_NAME} and "tokenizer.json" not in names
    again = load(Workdir(tmp_path / "out"))
    assert again.model.vocabulary == runner.model.vocabulary
    ours, theirs = by_path(runner.params), by_path(again.params)
    assert any(path.startswith("ctc/") for path in ours) and ours.keys() == theirs.keys()
    for path, x in ours.items():
        np.testing.assert_allclose(theirs[path], x, rtol=0, atol=1e-2 * np.abs(x).max() + 1e-9)


def test_int8_is_off_by_half_a_step_of_each_column():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 7, 5)).astype(np.float32) * np.arange(5, dtype=np.float32)
    leaves = {"a/kernel": kernel, "a/bias": np.arange(5, dtype=np.float32)}
    stored = to_int8(leaves)
    assert stored["a/kernel"].dtype == np.int8 and stored["a/kernel" + SCALE].shape == (2, 1, 5)
    again = from_int8(stored)
    assert again.keys() == leaves.keys()
    largest = np.abs(kernel).max(axis=1, keepdims=True)
    assert np.all(np.abs(again["a/kernel"] - kernel) <= largest / 254 + 1e-6)
    np.testing.assert_array_equal(again["a/bias"], leaves["a/bias"])


def test_int8_is_for_heads_of_a_whisper_alone(workdir, tmp_path):
    with pytest.raises(CheckpointError, match="only these are exported as int8"):
        export(load(Workdir(workdir)), Workdir(workdir), tmp_path / "out", "int8")


def test_lora_of_the_whisper_is_exported_merged(batch, tmp_path):
    lora = WhisperDecoder(lora=Lora(rank=2))
    tuned = whisper_workdir(tmp_path / "run", whisper_decoder=lora)
    runner = load(tuned)
    export(runner, tuned, tmp_path / "out")
    again = load(Workdir(tmp_path / "out"))
    assert again.model.config.whisper_decoder.lora.rank == 0
    expected = runner.run(batch, Greedy(3)).decoded.tokens
    np.testing.assert_array_equal(again.run(batch, Greedy(3)).decoded.tokens, expected)
    # What it changes is made for one Whisper, and no other will do.
    other = str(changed_whisper(tmp_path / "other"))
    for folder in (tuned, Workdir(tmp_path / "out")):
        with pytest.raises(WorkdirError, match=r"config\.pretrained\.model no longer holds"):
            load(folder, pretrained=other)


def test_any_format_of_the_same_whisper_will_do(exported, runner, batch, tmp_path, caplog):
    """float32 or float16, of Hugging Face or CTranslate2: one digest, no word of warning."""
    halves = {name: x.astype(np.float16) for name, x in tensors_of(FOLDER).items()}
    folders = [FOLDER, whisper_folder(tmp_path / "half", halves)]
    positions = runner.model.config.whisper.positions
    for dtype in ("float32", "float16"):
        variables = whole_whisper_variables(jax.device_get(runner.params), positions)
        variables = {k: x if x.ndim == 0 else x.astype(dtype) for k, x in variables.items()}
        folder = write_ctranslate2(tmp_path / dtype, variables)
        for name in ("tokenizer.json", "generation_config.json"):
            shutil.copy(FOLDER / name, folder)
        folders.append(folder)
    assert len({whisper_model_digest(folder) for folder in folders}) == 1
    greedy = load(open_model_folder(folders[-1])).run(batch, Greedy()).decoded
    verify = load(exported, pretrained=str(folders[-1])).run(batch, Verify()).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert not caplog.records


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_ctranslate2_names_the_alignment_heads(runner, tmp_path, name):
    positions = runner.model.config.whisper.positions
    variables = whole_whisper_variables(jax.device_get(runner.params), positions)
    folder = write_ctranslate2(tmp_path / "model", variables)
    (folder / name).write_text(json.dumps({"alignment_heads": [[0, 1], [1, 0]]}))
    decoder, _ = whisper_decoder_architecture(folder)
    assert decoder.alignment_heads == ((0, 1), (1, 0))


@pytest.mark.parametrize(
    "name", ["model.encoder.layers.0.fc1.bias", "model.decoder.embed_positions.weight"]
)
def test_the_digest_is_that_of_the_values(name, tmp_path):
    other = changed_whisper(tmp_path / "other", name)
    assert whisper_model_digest(other) != whisper_model_digest(FOLDER)


def test_a_fine_tuned_whisper_keeps_its_own_text(exported, trained, batch, tmp_path, caplog):
    folder = str(changed_whisper(tmp_path / "other"))
    expected = load(open_model_folder(folder)).run(batch, Greedy()).decoded.tokens
    for workdir in (exported, trained):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mtp_jax"):
            tuned = load(workdir, pretrained=folder)
        (record,) = caplog.records
        assert "holds other weights than those that" in record.getMessage()
        np.testing.assert_array_equal(tuned.run(batch, Verify()).decoded.tokens, expected)
    # Texts of the one are not taken for texts of the other.
    digests = {model_digest(exported, source) for source in (folder, str(FOLDER))}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decoder_layers": 1}, r"whisper_decoder\.layers: 2 -> 1"),
        ({"vocab_size": 1775}, "vocabulary: 1774 -> 1775"),
    ],
)
def test_a_whisper_of_another_size_is_refused(exported, trained, tmp_path, fields, said):
    folder = str(of_size(tmp_path / "other", **fields))
    for workdir in (exported, trained):
        with pytest.raises(PretrainedError, match=f"a Whisper of another size.*{said}"):
            load(workdir, pretrained=folder)


def test_a_whisper_without_its_tokenizer_is_refused(exported, tmp_path):
    folder = whisper_folder(tmp_path / "m", tensors_of(FOLDER))
    (folder / "tokenizer.json").unlink()
    for model, given in ((exported, str(folder)), (open_model_folder(folder), "")):
        with pytest.raises(TokenizerError, match=r"m has no tokenizer\.json: put that of"):
            load(model, pretrained=given)


def test_a_whisper_without_its_generation_config_is_warned_of(exported, tmp_path, caplog):
    folder = whisper_folder(tmp_path / "m", tensors_of(FOLDER))
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", suppress_tokens=None, begin_suppress_tokens=None)
    for model, given in ((exported, str(folder)), (open_model_folder(folder), "")):
        caplog.clear()
        loaded = load(model, pretrained=given)
        assert loaded.model.vocabulary.whisper.suppressed == ()
        (record,) = caplog.records
        assert "m has no generation_config.json, which says what tokens" in record.getMessage()


def test_a_whisper_that_is_not_at_hand_is_named(exported):
    with pytest.raises(PretrainedError, match="nowhere does not exist"):
        mtp_jax.load(exported.path, pretrained="nowhere")


def test_training_goes_on_from_an_export(exported, tmp_path):
    given = Config(
        init_from=str(exported.path),
        pretrained=Pretrained(model=str(FOLDER)),
        data=Data(bucket_seconds=(0.4,)),
        heads=Heads(count=3, layers=1, vocabulary=300),
    )
    config = completed(given)
    assert config.pretrained.model == str(FOLDER)
    workdir = Workdir(tmp_path)
    workdir.claim(config)
    tokenizer = open_tokenizer(config, workdir, types.SimpleNamespace(utterances=[]))
    model = make_model(config, tokenizer)
    begun, _ = starting_point(model, tokenizer, workdir, make_mesh(config.mesh))
    before = by_path(load(exported, pretrained=str(FOLDER)).params["heads"])
    after = by_path(begun["heads"])
    assert before.keys() == after.keys()
    for path, x in before.items():
        np.testing.assert_array_equal(after[path], x, err_msg=path)


@pytest.fixture
def recording(tmp_path):
    """Speech, as noise is not transcribed, of no more than the model's window."""
    file = tmp_path / "a.wav"
    soundfile.write(file, sentences(1)[0][7 * RATE // 10 :][: 2 * RATE // 5], RATE)
    return file


def test_from_a_workdir_to_a_text_in_two_commands(trained, recording, tmp_path):
    folder = tmp_path / "out"
    done = run(
        *("export", f"--workdir={trained.path}", f"--output={folder}", "--dtype=int8"),
        f"--pretrained={HUB}",
    )
    assert done.status == 0, done.err
    assert Workdir(folder).read_config().pretrained.model == HUB
    texts = {
        run("transcribe", recording, f"--model={model}", *flags).out
        for model, flags in (
            (folder, [f"--pretrained={FOLDER}"]),
            (folder, [f"--encoder={FOLDER}", "--strategy=greedy"]),
            (FOLDER, [f"--pretrained={tmp_path}/ignored"]),
        )
    }
    assert len(texts) == 1 and texts.pop().strip()


def test_a_whisper_is_calibrated_in_a_folder_beside_it(trained, recording, tmp_path):
    """With heads or without; to the folder of other programs nothing is written."""
    texts = mtp_jax.load(FOLDER).transcribe(recording).text.split()
    line = {"audio_filepath": str(recording), "duration": 0.4, "text": " ".join(texts[:1])}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(line) + "\n")
    flags = [f"--data={data}", f"--check={data}"]
    refused = run("calibrate", f"--model={FOLDER}", *flags)
    assert refused.status == 2 and "to which nothing is written: calibrate what" in refused.err
    beside = tmp_path / "beside"
    assert run("export", f"--model={FOLDER}", f"--output={beside}").status == 0
    heads = tmp_path / "heads"
    shutil.copytree(trained.path, heads)
    for folder in (beside, heads):
        assert mtp_jax.load(folder).calibration is None
        done = run("calibrate", f"--model={folder}", *flags)
        assert done.status == 0, done.err
        transcript = mtp_jax.load(folder).transcribe(recording)
        assert transcript.calibrated and transcript.text.split() == texts
