"""Released sizes: the tables name as many tensors, and the models have as many parameters."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mtp_jax.config import Config, Data, Heads, Mesh
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.models.build import build
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.models.speech_windows import prompt_rows
from mtp_jax.pretrained.glm_asr import GLM_ASR
from mtp_jax.pretrained.granite_speech import GRANITE_SPEECH
from mtp_jax.pretrained.qwen3_asr import QWEN3_ASR
from mtp_jax.pretrained.speech_llm import speech_llm_architecture
from mtp_jax.pretrained.voxtral import VOXTRAL
from mtp_jax.pretrained.weights import Weights
from mtp_jax.tokenizer.speech_prompts import SpeechPrompt

HEAD = dict.fromkeys(("glmasr", "granite_speech"), "language_model.lm_head.weight")
FAMILIES = {
    "voxtral": VOXTRAL,
    "qwen3_asr": QWEN3_ASR,
    "glmasr": GLM_ASR,
    "granite_speech": GRANITE_SPEECH,
}
SMALL_QWEN = QWEN3_ASR.released["Qwen/Qwen3-ASR-0.6B"]
LARGE_VOXTRAL = VOXTRAL.released["mistralai/Voxtral-Small-24B-2507"]

GRANITE_4 = GRANITE_SPEECH.released["ibm-granite/granite-speech-4.1-2b"]


def counted(folder, kind, fields) -> tuple[int, int, int]:
    """Tensors, parameters and rows of 30 s of a model; config.json leaves out what is usual."""
    values = {"model_type": kind, "text_config": {}, "audio_config": {}} | fields
    (folder / "config.json").write_text(json.dumps(values))
    if kind in HEAD:
        save_file({HEAD[kind]: np.zeros(1, np.float32)}, folder / "model.safetensors")
    source = speech_llm_architecture(folder)
    config = Config(
        front_end=source.front_end,
        decoder=source.decoder,
        speech_llm=source.config,
        heads=Heads(count=1),
        data=Data(bucket_seconds=(30.0,)),
    )
    prompt = SpeechPrompt("", 0, (), (0,), (0,), ())
    model = build(config, Vocabulary(source.rows, 0, 0, speech=prompt))
    shapes, _ = parameter_shapes(model, make_mesh(Mesh(data=1), jax.devices()[:1]))
    leaves = by_path(shapes)
    weights = Weights(folder, "safetensors", {}, None)
    rules = {rule.ours: rule for rule in FAMILIES[kind].rules(weights, source.config)}
    assert leaves.keys() <= rules.keys()
    names = {name for path, x in leaves.items() for name in rules[path].names(x.shape)}
    parameters = sum(math.prod(x.shape) for x in leaves.values())
    return len(names), parameters, prompt_rows(30 * 16_000, config)


@pytest.mark.parametrize(
    ("kind", "fields", "tensors", "billions", "rows"),
    [
        # A stored table of positions is a tensor and no parameter of ours; a tied head is neither.
        ("voxtral", {}, 762 - 1, 4.676 - 0.002, 375),
        ("voxtral", LARGE_VOXTRAL, None, 24.262 - 0.002, 375),
        ("qwen3_asr", {}, 708 - 1, 2.038, 390),
        ("qwen3_asr", SMALL_QWEN, 612 - 1, 0.782, 390),
        ("glmasr", {}, 745, 2.258, 375),
    ],
)
def test_counts_are_those_of_the_released_models(tmp_path, kind, fields, tensors, billions, rows):
    """What config.json leaves out is the size of the class in transformers."""
    names, parameters, ours = counted(tmp_path, kind, fields)
    assert tensors in (None, names)
    assert parameters / 1e9 == pytest.approx(billions, abs=6e-4)
    assert ours == rows


def test_granite_has_the_bytes_that_are_published(tmp_path):
    """Of bfloat16, and one int64 per layer of the encoder, which counts batches of its training."""
    names, parameters, rows = counted(tmp_path, "granite_speech", GRANITE_4)
    assert names + 16 == 954
    assert 2 * parameters + 16 * 8 == 4_626_414_392
    assert rows == 300
