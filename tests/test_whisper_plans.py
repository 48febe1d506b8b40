"""`mtp_jax.compile` of a Whisper: sizes by name, and its decoding compiled for TPUs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pytest

from mtp_jax.compile import model_config, report, sized
from mtp_jax.config import ConfigError, Heads, Mesh
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.build import build, make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.planning.chips import Slice
from mtp_jax.planning.compiled import Task
from mtp_jax.planning.drafts import acceptance_needed
from mtp_jax.planning.plan import Planner
from mtp_jax.planning.programs import Load, lower_decode, strategy_of
from mtp_jax.planning.worker import lowered
from mtp_jax.pretrained.published_sizes import whisper_tokens
from mtp_jax.tokenizer import Tokenizer
from tests import commands
from tests.pretrained import GOLDEN_WHISPER
from tests.test_compile import needs_libtpu
from tests.tiny_whisper import tiny_whisper


@pytest.mark.parametrize("arguments", [[], ["--config=add_heads", "--model=base"]])
def test_either_a_config_or_a_model_is_planned(arguments, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as the command does, for good
    done = commands.run("compile", "--topology=v5e:2x2", *arguments)
    assert done.status == 2
    assert "give --config, or --model, but not both" in done.err


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("whisper-tiny", 37_760_640),
        ("openai/whisper-base", 72_593_920),
        ("hf://openai/whisper-small", 241_734_912),
        ("whisper-medium", 763_857_920),
        ("whisper-large-v2", 1_543_304_960),
        ("whisper-large-v3", 1_543_490_560),
        ("whisper-large-v3-turbo", 808_878_080),
        ("distil-large-v3", 756_405_760),
    ],
)
def test_a_whisper_has_the_size_of_its_namesake(name, parameters):
    """As published, with the encoder's positions, which are no parameters here."""
    config, vocabulary = sized(model_config(name))
    config = dataclasses.replace(config, heads=dataclasses.replace(config.heads, count=1))
    mesh = make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
    shapes, _ = parameter_shapes(build(config, vocabulary), mesh)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters - 1500 * config.whisper.width


def test_the_special_tokens_of_a_whisper_stand_where_they_are():
    """As tokenizer.json of openai/whisper-base and whisper-tiny.en has them."""
    base, english, large = (whisper_tokens(size) for size in (51_865, 51_864, 51_866))
    assert (base.start, base.transcribe, base.no_timestamps) == (50_258, 50_359, 50_363)
    assert (english.start, english.previous, english.no_timestamps) == (50_257, 50_360, 50_362)
    assert (len(base.languages), len(english.languages), len(large.languages)) == (99, 0, 100)
    assert english.start_tokens() == (50_257, 50_362)


def test_a_model_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"whisper-huge is not among .*openai/whisper-large-v3"):
        sized(model_config("whisper-huge"))


def whisper_planner(folder: Path, topology: str = "v5e:2x2") -> Planner:
    model = tiny_whisper(Heads(count=4, layers=1))
    where = Slice.parse(topology)
    return Planner(model.config, model.vocabulary, where, topology, folder)


@pytest.mark.parametrize("program", ["greedy", "verify"])
def test_the_program_planned_for_a_whisper_is_the_one_that_runs(program):
    planned_as_run(GOLDEN_WHISPER, Heads(count=3, layers=1), program)


def planned_as_run(folder, heads, program):
    """Compares programs of a folder, after the way to the process that compiles."""
    given = dataclasses.replace(open_model_folder(folder).read_config(), heads=heads)
    model = make_model(given, Tokenizer.load(folder))
    config, vocabulary = sized(given)
    assert vocabulary == model.vocabulary
    mesh, load = make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), Load(2, 0.2, 5)
    task = Task(config, vocabulary, "v5e:1x1", program, load.rows, load.seconds, load.tokens)
    planned, shapes = lowered(Task.from_json(task.to_json()), mesh)
    runs, expected = lower_decode(model, mesh, load, strategy_of(given, program))
    assert planned.as_text() == runs.as_text()
    assert shapes == expected


@needs_libtpu
def test_calls_of_each_width_of_a_whisper_compiled_for_tpus(tmp_path):
    """Two utterances on four chips: the matrices are split over pairs of them."""
    one, three = whisper_planner(tmp_path).widths(Load(2, 0.4, 5), (1, 3))
    assert one["mesh"] == three["mesh"] == "2x1x2"
    assert one["fits"] and three["fits"]
    assert 0 < one["call_seconds"] < three["call_seconds"]
    assert one["before_seconds"] > one["call_seconds"]
    ratio = three["call_seconds"] / one["call_seconds"]
    assert three["acceptance"] == acceptance_needed(ratio, 3)
    assert "greedy on v5e:2x2, mesh 2x1x2, 2 utterances, 1 wide" in report(one, 16e9)
    assert "drafts" in report(three, 16e9)


def test_a_model_that_fits_on_no_mesh_is_not_compiled(tmp_path):
    planner = whisper_planner(tmp_path)
    chip = dataclasses.replace(planner.where.chip, hbm_bytes=1000)
    where = dataclasses.replace(planner.where, chip=chip)
    (row,) = dataclasses.replace(planner, where=where).widths(Load(1, 0.4, 5), (1,))
    assert "greedy on 1x1x4: does not fit: the parameters alone take" in report(row, 1000)
