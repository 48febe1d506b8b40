"""The model in the box fits what its config says, without the encoder that it does not hold."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.inference.load import load
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path
from mtp_jax.pretrained import import_llama
from mtp_jax.tokenizer import Tokenizer

FOLDER = Path(__file__).parent.parent / "models" / "librispeech"


def test_the_model_in_the_box_is_whole():
    workdir = Workdir(FOLDER)
    config, parts = workdir.read_config(), workdir.read_parts()
    assert config.pretrained.encoder == "hf://openai/whisper-base"
    assert len(parts["sha256"]["encoder"]) == 64
    tokenizer = Tokenizer.load(workdir.tokenizer)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    shapes, shardings = parameter_shapes(make_model(config, tokenizer), mesh)
    held = load_file(workdir.speech) | load_file(workdir.heads)
    decoder = import_llama(FOLDER, shapes["decoder"], shardings["decoder"])
    held |= by_path({"decoder": decoder})
    wanted = {p: x.shape for p, x in by_path(shapes).items() if p not in parts["left_out"]}
    assert {path: x.shape for path, x in held.items()} == wanted
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in held.values())
    assert all(path.startswith("whisper/") for path in parts["left_out"])


def test_it_needs_an_encoder():
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load(Workdir(FOLDER), pretrained="nowhere")


def test_it_is_small_enough_for_every_clone():
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    assert size < 16e6
