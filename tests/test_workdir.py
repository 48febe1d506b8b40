from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import pathlib
import re

import jax
import pytest

from mtp_jax.checkpoints import workdir as workdir_module
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError, commit, write_json
from mtp_jax.config import Config, ConfigError, Evaluation, Mesh, Optim
from mtp_jax.inference.load import load
from mtp_jax.pretrained.exported import export
from tests import models


def test_a_model_of_another_mesh_is_loaded_on_the_devices_that_there_are(tmp_path, caplog):
    config = dataclasses.replace(models.CONFIG, mesh=Mesh(data=1, fsdp=2))
    caplog.set_level("INFO")
    model = load(Workdir(models.tiny_workdir(tmp_path / "two", config)))
    assert model.mesh.size == len(jax.devices()) == 1
    assert "makes 2 devices, and there are 1" in caplog.text
    export(model, Workdir(tmp_path / "two"), tmp_path / "export")
    assert Workdir(tmp_path / "export").read_config().mesh == Mesh()


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> Workdir:
    return Workdir(tmp_path / "runs" / "one")


def sentence(refusal: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which must fit on one line."""
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_claim_is_kept_and_repeated(workdir: Workdir) -> None:
    config = Config(seed=3)
    workdir.claim(config)
    assert workdir.read_config() == config
    before = workdir.config.read_bytes()
    workdir.claim(config)
    Workdir(workdir.path).claim(Config(seed=3))
    assert workdir.config.read_bytes() == before
    assert [file.name for file in workdir.path.iterdir()] == ["config.json"]


def test_two_runs_do_not_train_in_one_folder(workdir: Workdir) -> None:
    with workdir.alone():
        workdir.claim(Config())
        with (
            pytest.raises(WorkdirError, match="another run trains in") as refusal,
            Workdir(workdir.path).alone(),
        ):
            pass
        assert "wait until it has ended, or choose another --workdir" in sentence(refusal)
    with Workdir(workdir.path).alone():
        pass
    assert [file.name for file in workdir.path.iterdir()] == ["config.json"]


def test_where_a_file_system_has_no_locks_runs_go_on(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with workdir.alone():
        assert workdir.path.is_dir()


def test_another_config_is_refused_and_the_fields_are_named(workdir: Workdir) -> None:
    workdir.claim(Config())
    before = workdir.config.read_bytes()
    steps = Config().optim.steps
    other = dataclasses.replace(Config(), seed=1, optim=Optim(steps=steps + 1))
    with pytest.raises(WorkdirError) as refusal:
        workdir.claim(other)
    message = sentence(refusal)
    assert str(workdir.path) in message
    assert "seed: 0 -> 1" in message
    assert f"optim.steps: {steps} -> {steps + 1}" in message
    assert "--workdir" in message
    assert workdir.config.read_bytes() == before


def test_settings_of_the_closing_evaluation_may_change(workdir: Workdir) -> None:
    """As their defaults do from one version to the next; those of dev are training's."""
    workdir.claim(Config())
    other = dataclasses.replace(Config(), evaluation=Evaluation(max_wer_increase=2.0, taus=(0.5,)))
    workdir.claim(other)
    assert workdir.read_config() == other
    dev = dataclasses.replace(other, evaluation=Evaluation(beams=3, batch_sizes=(7,)))
    with pytest.raises(WorkdirError, match=r"config \(evaluation\.batch_sizes: [^;]*\):"):
        workdir.claim(dev)
    assert workdir.read_config() == other


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be used as a workdir") as refusal:
        Workdir(tmp_path / "file" / "run").claim(Config())
    assert str(tmp_path / "file" / "run") in sentence(refusal)


def test_reading_what_is_no_workdir(workdir: Workdir) -> None:
    with pytest.raises(WorkdirError, match=r"is no workdir: it has no config\.json") as refusal:
        workdir.read_config()
    sentence(refusal)


@pytest.mark.parametrize("content", ["", '{"seed": 1', "\udcff"], ids=["empty", "cut", "binary"])
def test_reading_a_damaged_config(workdir: Workdir, content: str) -> None:
    workdir.path.mkdir(parents=True)
    workdir.config.write_bytes(content.encode(errors="surrogateescape"))
    for read in (workdir.read_config, lambda: workdir.claim(Config())):
        with pytest.raises(WorkdirError, match=r"config\.json cannot be read") as refusal:
            read()
        sentence(refusal)


def test_a_config_of_another_version_names_its_field(workdir: Workdir) -> None:
    write_json(workdir.config, {"optim": {"stepz": 1}})
    with pytest.raises(ConfigError, match=r"config\.optim\.stepz.*config\.optim\.steps"):
        workdir.read_config()


def test_reading_tau(workdir: Workdir) -> None:
    assert workdir.read_tau() is None
    kept = {"tau": 0.9, "greedy_wer": 3.5, "rows": [{"wer": 3.5}]}
    write_json(workdir.tau, kept)
    assert workdir.read_tau() == kept


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"tau": "high", "rows": []}', '{"tau": 0.9}', '{"tau": null}']
)
def test_a_damaged_tau_is_one_sentence(workdir: Workdir, content: str) -> None:
    workdir.path.mkdir(parents=True)
    workdir.tau.write_text(content)
    with pytest.raises(WorkdirError, match=r"tau\.json cannot be read .*: remove it") as refusal:
        workdir.read_tau()
    sentence(refusal)


def test_the_tokenizer_is_found_whatever_its_format(workdir: Workdir) -> None:
    assert workdir.tokenizer is None
    workdir.path.mkdir(parents=True)
    for name in ("tokenizer.model", "tokenizer.json"):  # of both, the one that loading prefers
        (workdir.path / name).touch()
        assert workdir.tokenizer == workdir.path / name


def test_json_is_written_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_json(path, {"wer": 3.5, "text": "naïve"})
    assert json.loads(path.read_text()) == {"wer": 3.5, "text": "naïve"}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"wer": math.nan})
    with pytest.raises(TypeError):
        write_json(path, {"wer": object()})
    assert json.loads(path.read_text())["wer"] == 3.5
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir("~/run").path == tmp_path / "run"


def test_the_commit_is_a_hash_or_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    found = commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
    monkeypatch.setattr(workdir_module, "__file__", str(tmp_path / "workdir.py"))
    assert commit() is None


def test_evaluations_have_a_folder_of_their_own_each(tmp_path: pathlib.Path) -> None:
    workdir = Workdir(tmp_path)
    sources = ("embedded:test", "embedded:dev", "a.jsonl+b.jsonl", "/data/a/b.jsonl", "/", "..")
    folders = [workdir.evaluation(source) for source in sources]
    assert len({*folders[:4]}) == 4
    assert folders[0] == tmp_path / "evaluations" / "embedded-test"
    assert all(folder.parent == tmp_path / "evaluations" for folder in folders)
