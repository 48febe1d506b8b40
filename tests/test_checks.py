"""Places, sources and models that cannot be used are found before any work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mtp_jax import paths
from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Data
from mtp_jax.data import DataError, check_sources
from mtp_jax.inference import load as load_module
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import model_digest, open_model_folder
from mtp_jax.paths import OutputError, check_writable, check_writable_file, write_whole
from mtp_jax.pretrained import exported
from mtp_jax.pretrained.exported import export
from mtp_jax.transcription import loading
from tests.commands import run
from tests.models import tiny_workdir


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "newer"):
        check_writable(folder)
    check_writable_file(tmp_path / "file.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    for wrong in ("file", "file/below", "nowhere/below", "x" * 300):
        with pytest.raises(OutputError, match="choose another --output"):
            check_writable(tmp_path / wrong, "output")
    with pytest.raises(OutputError, match="is a folder: give --picture"):
        check_writable_file(tmp_path, "picture")


def test_a_read_only_place_is_refused(tmp_path, monkeypatch):
    def read_only(self, *unused, **also):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "touch", read_only)  # for root nothing is read-only
    monkeypatch.setattr(Path, "mkdir", read_only)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OutputError, match="Read-only file system"):
            check_writable(folder)


def test_a_file_is_written_whole_under_any_name(tmp_path, monkeypatch):
    file = tmp_path / ("音" * 85)
    write_whole(file, b"one")

    def fails(*unused):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(paths.os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"two")
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


def test_sources_are_looked_into(tmp_path):
    (tmp_path / "good.jsonl").write_text('{"audio_filepath": "a.wav", "text": "a"}\n')
    (tmp_path / "odd.jsonl").write_text('{"audio": "a.wav", "transcript": "a"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    good = f"{tmp_path}/good.jsonl"
    untold = f"{tmp_path}/untold.jsonl"
    Path(untold).write_text('{"audio_filepath": "a.wav"}\n')
    check_sources([untold], Data(text="greedy"))
    for data, needs_text in ((Data(), None), (Data(text="greedy"), True)):
        with pytest.raises(DataError, match=r"line 1 is .* add it, as only config\.data\.text"):
            check_sources([untold], data, needs_text)
    check_sources([good, f"{good}+embedded:dev", "embedded/noisy:test[:3]"], Data())
    for wrong, said in {
        f"{good}x": "is no file or directory",
        f"{good}+": "'' is no file or directory",
        "embedded:tset": "no such split: choose of",
        f"{tmp_path}/odd.jsonl": r"none is one of a manifest \(line 1 is wrong field: .*audio",
        f"{tmp_path}/empty.jsonl": "is empty",
        f"{tmp_path}/folder": "neither a LibriSpeech directory",
    }.items():
        with pytest.raises(DataError, match=said):
            check_sources([good, wrong], Data())


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("evaluate", ["--data=typo.jsonl"], "'typo.jsonl' is no file"),
        ("evaluate", [f"--output={__file__}/x"], "choose another --output"),
        ("calibrate", ["--check=typo.jsonl", "--data=embedded:dev"], "'typo.jsonl' is no file"),
        ("calibrate", [f"--picture={__file__}/x.png"], "choose another --picture"),
        ("calibrate", ["--picture=x.foo"], "must end in one of .png"),
        ("export", [f"--output={__file__}"], "choose another --output"),
        ("export", ["--output="], "--output is empty"),
    ],
)
def test_commands_refuse_before_they_load_a_model(workdir, command, flags, said, monkeypatch):
    def loaded(*unused, **also):
        raise AssertionError

    for module in (loading, load_module):  # commands import them when they are called
        monkeypatch.setattr(module, "load", loaded)
    done = run(command, f"--workdir={workdir}", *flags)
    assert done.status in (1, 2)
    assert said in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"architectures": ["WhisperForConditionalGeneration"]},
            "a Whisper model .config.json says",
        ),
        ({"model_type": "llama"}, "is a Llama model"),
        ({"lang_ids": [1]}, "folder of another program"),
        ({"architectures": ["LlamaForCausalLM"], "mtp_jax": {}}, "an export that is not whole"),
    ],
)
def test_a_model_of_another_program_is_named(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match=said):
        open_model_folder(tmp_path)


def test_a_model_is_known_by_what_decides_its_texts(workdir, tmp_path):
    digest = model_digest(Workdir(workdir))
    copy = Workdir(shutil.copytree(workdir, tmp_path / "copy"))
    (copy.path / "results.json").write_text("{}")
    assert model_digest(copy) == digest
    (copy.path / "confidence.json").write_text("{}")
    assert model_digest(copy) != digest
    other = Workdir(shutil.copytree(workdir, tmp_path / "other"))
    file = max(
        (f for f in (other.path / "best").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert model_digest(other) != digest


def test_an_export_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    workdir = Workdir(tiny_workdir(tmp_path / "tiny"))
    model, folder = load(workdir), tmp_path / "export"
    export(model, workdir, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    real = exported._save

    def full(tensors, path):
        if path.name == "speech.safetensors":
            raise OSError(28, os.strerror(28))
        real(tensors, path)

    monkeypatch.setattr(exported, "_save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export(model, workdir, folder, "float16")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(CheckpointError, match="the model itself"):
        export(model, workdir, tmp_path / "tiny")


@pytest.mark.parametrize("strategy", ["greedy,verify", "threshold"])
def test_dev_must_be_there_only_if_tau_is_chosen_on_it(workdir, tmp_path, monkeypatch, strategy):
    class Loading(Exception):
        pass

    def loading_begins(*unused, **also):
        raise Loading

    folder = Path(shutil.copytree(workdir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["data"]["dev"] = "elsewhere.jsonl"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(load_module, "load", loading_begins)
    flags = f"--workdir={folder}", "--data=embedded:test", f"--strategy={strategy}"
    if strategy == "threshold":
        assert "'elsewhere.jsonl' is no file" in run("evaluate", *flags).err
    else:
        with pytest.raises(Loading):
            run("evaluate", *flags)
