"""A folder to a `Runner`: the best checkpoint of a workdir, or an exported model."""

from __future__ import annotations

import logging
from typing import Any

import jax

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Mesh
from mtp_jax.distributed import sharding
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path, matches, merge, nested
from mtp_jax.pretrained.exported import read_exported
from mtp_jax.pretrained.parts import digests, import_parts
from mtp_jax.pretrained.sizes import with_encoder
from mtp_jax.tokenizer import Tokenizer

log = logging.getLogger("mtp_jax")


def _mesh_here(trained: Mesh) -> jax.sharding.Mesh:
    try:
        return sharding.make_mesh(trained)
    except sharding.MeshError as error:
        log.info("%s; decoding splits the batch over all devices instead", error)
        return sharding.make_mesh(Mesh())


def load(workdir: Workdir, mesh: jax.sharding.Mesh | None = None, encoder: str = "") -> Runner:
    """The best checkpoint of a workdir, or an exported model, ready to decode.

    Args:
        workdir: of a trained model, or a folder that one was exported to.
        mesh: the devices; by default laid out as its config says, or if there are others than it
            was trained on, with the batch split over all.
        encoder: source of the frozen speech encoder; where training had it by default.

    Raises:
        WorkdirError, CheckpointError, TokenizerError, PretrainedError: something of it is missing
            or damaged.
    """
    config = with_encoder(workdir.read_config(), encoder)
    if workdir.tokenizer is None:
        raise WorkdirError(f"{workdir.path} has no tokenizer: train first")
    tokenizer = Tokenizer.load(workdir.tokenizer)
    mesh = mesh or _mesh_here(config.mesh)
    model = make_model(config, tokenizer)
    shapes, shardings = parameter_shapes(model, mesh)
    imported: dict[str, Any] = {}
    if parts := workdir.read_parts():
        workdir.record_pretrained(digests(config.pretrained), parts["left_out"])
        whole = by_path(import_parts(config.pretrained, tokenizer, shapes, shardings))
        left_out = matches(parts["left_out"])
        imported = {path: x for path, x in whole.items() if left_out(path)}
    own, own_shardings = (
        nested({path: x for path, x in by_path(tree).items() if path not in imported})
        for tree in (shapes, shardings)
    )
    params: Any
    if not own:
        params = {}
    elif workdir.exported.exists():
        params = read_exported(workdir, own, own_shardings)
    else:
        with Checkpoints(workdir.path, config.train.keep_best) as checkpoints:
            params = checkpoints.restore_best(own, own_shardings)
    return Runner(model, merge(params, nested(imported)), tokenizer, mesh, imported)
