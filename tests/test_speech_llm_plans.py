"""`mtp_jax.compile` of released speech LLMs: sizes by name, and their decoding compiled."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from mtp_jax.compile import model_config, sized
from mtp_jax.config import ConfigError, Heads, Mesh
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.models.build import build
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.planning.chips import Slice
from mtp_jax.planning.plan import Planner
from mtp_jax.planning.programs import Load, prompt_length
from tests.speech_llms import GOLDEN
from tests.test_compile import needs_libtpu
from tests.test_whisper_plans import planned_as_run


@pytest.mark.parametrize(
    ("name", "billions", "before_text"),
    [
        # Parameters, as tests/test_speech_llm_sizes.py has them; rows of audio and tokens.
        ("voxtral-mini-3b", 4.674, 375 + 5),
        ("hf://mistralai/Voxtral-Mini-3B-2507", 4.674, 375 + 5),
        ("voxtral-small-24b", 24.260, 375 + 5),
        ("qwen3-asr-1.7b", 2.038, 390 + 15),
        ("Qwen/Qwen3-ASR-1.7B-hf", 2.038, 390 + 15),
        ("qwen3-asr-0.6b", 0.782, 390 + 15),
        ("glm-asr-nano-2512", 2.258, 375 + 14),
        ("granite-speech-4.1-2b", 2.313, 300 + 12),
    ],
)
def test_a_speech_llm_has_the_size_of_its_namesake(name, billions, before_text):
    config, vocabulary = sized(model_config(name))
    one = dataclasses.replace(config, heads=Heads(count=1))
    model = build(one, vocabulary)
    shapes, _ = parameter_shapes(model, make_mesh(Mesh(1, 1, 1), jax.devices()[:1]))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, abs=6e-4)
    # A prompt stands before and behind the audio, padded to the same length.
    tokens = len(vocabulary.speech.start_tokens())
    audio = prompt_length(model, Load(1, 30.0, 0)) - 2 * tokens
    assert audio + tokens - 1 == before_text
    assert vocabulary.eos not in vocabulary.ends


def test_heads_are_those_that_are_added_to_a_whisper():
    whisper, _ = sized(model_config("whisper-base"))
    assert whisper.heads.kind == "serial"
    for model in ("voxtral-mini-3b", str(GOLDEN / "voxtral")):
        config, _ = sized(model_config(model))
        assert config.heads == whisper.heads


@pytest.mark.parametrize("name", ["voxtral-mini-4b", "Mistral/Voxtral-Mini-3B-2507"])
def test_a_model_that_is_not_known_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match=rf"{name} is not among .*Qwen/Qwen3-ASR-0.6B, "):
        sized(model_config(name))


@pytest.mark.parametrize(
    ("name", "heads", "program"),
    [
        ("voxtral", Heads(count=3, layers=1), "greedy"),
        ("qwen3_asr", Heads("serial", 3), "verify"),
    ],
)
def test_the_program_planned_for_a_speech_llm_is_the_one_that_runs(name, heads, program):
    planned_as_run(GOLDEN / name, heads, program)


@needs_libtpu
def test_calls_of_each_width_of_a_speech_llm_compiled_for_tpus(tmp_path):
    """Two utterances on four chips: the matrices are split over pairs of them."""
    config, vocabulary = sized(model_config(str(GOLDEN / "voxtral")))
    heads = dataclasses.replace(config.heads, vocabulary=64)
    config = dataclasses.replace(config, heads=heads)
    planner = Planner(config, vocabulary, Slice.parse("v5e:2x2"), "v5e:2x2", tmp_path)
    one, three = planner.widths(Load(2, 0.8, 5), (1, 3))
    assert one["mesh"] == three["mesh"] == "2x1x2"
    assert one["fits"] and three["fits"]
    for row in (one, three):
        assert row["call_seconds"] > 0 and row["before_seconds"] > 0
    assert three["argument_bytes"] > one["argument_bytes"]
