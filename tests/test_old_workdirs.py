"""Workdirs of earlier versions: their configs are read, their runs go on, their parameters fit.

``golden/workdir_1f87f18.json`` holds the config of a workdir that commit 1f87f18 trained, with some
renamed fields away from their defaults, and the shapes of the parameters in its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from mtp_jax.checkpoints.workdir import Workdir, WorkdirError, write_json
from mtp_jax.config import Config, ConfigError, Evaluation, Mesh, from_config_dict
from mtp_jax.config.whole import _RETIRED, from_saved
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_llama import SpeechLlama

GOLDEN = Path(__file__).parent / "golden" / "workdir_1f87f18.json"


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.fixture
def workdir(old: dict[str, Any], tmp_path: Path) -> Workdir:
    write_json(tmp_path / "config.json", old["config"])
    return Workdir(tmp_path)


def test_its_config_is_read(workdir: Workdir, old: dict[str, Any]) -> None:
    config, saved = workdir.read_config(), old["config"]
    assert config.train.max_loss_ratio == saved["train"]["explosion"] == 12
    assert config.adaptor.training_capacity == saved["adaptor"]["training_room"] == 0.75
    assert config.optim.steps == saved["optim"]["steps"] == 6


def test_its_run_goes_on_by_the_command_that_began_it(workdir: Workdir) -> None:
    """Its fields have other names now, and some others their defaults."""
    config = workdir.read_config()
    default = Evaluation(batch_sizes=config.evaluation.batch_sizes, taus=config.evaluation.taus)
    assert config.evaluation != default
    workdir.claim(dataclasses.replace(config, evaluation=default))
    with pytest.raises(WorkdirError, match=r"seed: 0 -> 1"):
        workdir.claim(dataclasses.replace(config, seed=1))


def test_its_parameters_have_the_names_and_shapes_of_ours(
    workdir: Workdir, old: dict[str, Any]
) -> None:
    config = workdir.read_config()
    model = SpeechLlama(config, Vocabulary(config.tokenizer.vocab_size, bos=1, eos=2))
    shapes, _ = parameter_shapes(model, make_mesh(Mesh(1, 1, 1), jax.devices()[:1]))
    ours = {path: list(x.shape) for path, x in by_path(shapes).items()}
    assert ours == old["parameters"]


@pytest.mark.parametrize("field", _RETIRED)
def test_a_field_of_an_earlier_version_is_read_where_it_was_saved(field: str) -> None:
    """In a config that is written today it is refused by its name, and by what it is called now."""
    group, name = field.split(".")
    now = _RETIRED[field]
    current = dataclasses.asdict(Config())
    value = current[now.split(".")[0]][now.split(".")[1]] if now else 0
    assert from_saved({group: {name: value}}) == Config()
    with pytest.raises(ConfigError, match=rf"config\.{field} is not a field: .*{now}"):
        from_config_dict({group: {name: value}})
