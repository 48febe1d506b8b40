"""Models in the box, as far as they go without their Whisper: whole, finite, and small."""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file

from mtp_jax.checkpoints.digest import file_digest
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Mesh
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path, nested
from mtp_jax.pretrained.exported import read_exported
from mtp_jax.pretrained.int8 import from_int8
from mtp_jax.tokenizer import Tokenizer

BOX = pathlib.Path(__file__).parent.parent / "models" / "librispeech"
WHISPER_BOX = BOX.parent / "whisper-base"


def test_the_model_in_the_box_is_whole_with_whisper_base():
    workdir = Workdir(BOX)
    tokenizer = Tokenizer.load(workdir.tokenizer)
    model = make_model(workdir.read_config(), tokenizer)
    parts = workdir.read_parts()
    shapes, shardings = parameter_shapes(model, make_mesh(Mesh(data=1), jax.devices()[:1]))
    own, places = (
        nested({path: x for path, x in by_path(tree).items() if path not in parts["left_out"]})
        for tree in (shapes, shardings)
    )

    params = by_path(read_exported(workdir, own, places))

    assert all(np.isfinite(x).all() for x in params.values())
    # What is left to the frozen encoder is all of Whisper base, and nothing else.
    elsewhere = set(by_path(shapes)) - set(params)
    assert elsewhere == {path for path in by_path(shapes) if path.startswith("whisper/")}
    assert sum(by_path(shapes)[path].size for path in elsewhere) > 19e6
    assert len(parts["sha256"]["encoder"]) == 64


def test_the_box_fits_into_a_clone():
    assert sum(file.stat().st_size for file in BOX.iterdir()) <= 16e6


def test_the_heads_in_the_box_are_whole():
    workdir = Workdir(WHISPER_BOX)
    config = workdir.read_config()
    assert config.pretrained.model == "hf://openai/whisper-base" and config.heads.serial
    for name, digest in json.loads(workdir.digests.read_text()).items():
        assert file_digest(WHISPER_BOX / name) == digest
    stored = from_int8(load_file(workdir.heads))
    assert {path.split("/")[0] for path in stored} == {"heads"}
    assert all(np.isfinite(x).all() for x in stored.values())
    tokens = stored["heads/tokens"]
    assert len(np.unique(tokens)) == config.heads.vocabulary == len(tokens)
    assert len(workdir.read_parts()["sha256"]["model"]) == 64


def test_they_fit_into_a_clone():
    assert sum(file.stat().st_size for file in WHISPER_BOX.iterdir()) <= 6e6
