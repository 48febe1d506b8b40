"""A folder to a `Runner`: the best checkpoint of a workdir, or an exported model."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from typing import Any

import jax

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Config, Mesh
from mtp_jax.distributed import sharding
from mtp_jax.inference.draft_model import DraftModel, check_drafter
from mtp_jax.inference.model_folder import config_of, open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.int8_weights import check_weights, in_int8, leaf_in_int8
from mtp_jax.models.params import by_path, matches, merge, nested
from mtp_jax.pretrained.exported import merged, read_exported
from mtp_jax.pretrained.parts import as_stored, digests, finished_parts, import_parts
from mtp_jax.pretrained.sizes import check_sizes, with_dtype, with_heads, with_silence
from mtp_jax.pretrained.source import resolve
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError

log = logging.getLogger("mtp_jax")


def _mesh_here(trained: Mesh) -> jax.sharding.Mesh:
    try:
        return sharding.make_mesh(trained)
    except sharding.MeshError as error:
        log.info("%s; decoding splits the batch over all devices instead", error)
        return sharding.make_mesh(Mesh())


def load(
    workdir: Workdir,
    mesh: jax.sharding.Mesh | None = None,
    pretrained: str = "",
    silence: float | None = None,
    dtype: str = "",
    timestamps: bool = False,
    heads: int = 0,
    draft_model: str | os.PathLike[str] = "",
    weights: str = "",
) -> Runner:
    """The best checkpoint of a workdir, or an exported model, ready to decode.

    Args:
        workdir: of a trained model, or a folder that one was exported to.
        mesh: the devices; by default laid out as its config says, or if there are others than it
            was trained on, with the batch split over all.
        pretrained: source of the Whisper or speech LLM, or of the frozen speech encoder, that it
            leaves out; where training had it by default.
        silence: seconds of it that a Whisper hears behind an utterance; as its config says by
            default.
        dtype: as in `mtp_jax.pretrained.sizes.with_dtype`.
        timestamps: of a Whisper: switches `config.whisper_decoder.timestamps` on.
        heads: M of serial heads; 0 for that of training.
        draft_model: folder of another model, of any kind, that drafts for it. `dtype` and `weights`
            are its too, and of a Whisper `silence` and `timestamps`.
        weights: "int8" rounds the matrices of decoder and heads (`mtp_jax.models.int8_weights`),
            those of a speech LLM as they are read.

    Raises:
        ConfigError: `silence` is negative, or the model is no Whisper; `dtype` is no type; the
            number of `heads` is fixed; `weights` are none, or need a package that is not there.
        WorkdirError, CheckpointError, TokenizerError, PretrainedError: something of it is missing
            or damaged, or the other model cannot draft for it.
    """
    check_weights(weights)
    drafter = open_model_folder(draft_model) if draft_model else None
    config = with_silence(config_of(workdir, pretrained), silence)
    config = with_heads(config, heads)
    if timestamps:
        if not config.whisper_decoder.present:
            raise WorkdirError(f"{workdir.path} writes no timestamps: only a Whisper does")
        decoder = dataclasses.replace(config.whisper_decoder, timestamps=True)
        config = dataclasses.replace(config, whisper_decoder=decoder)
    if drafter:
        check_drafter(config, config_of(drafter), str(draft_model))
    mesh = mesh or _mesh_here(config.mesh)
    config = with_dtype(config, dtype, mesh.devices.flat[0].platform)
    tokenizer = tokenizer_of(workdir, config)
    model = make_model(config, tokenizer)
    shapes, shardings = parameter_shapes(model, mesh)
    imported: dict[str, Any] = {}
    if parts := workdir.read_parts():
        if parts["sha256"]:
            _check_parts(workdir, config, tokenizer, by_path(shapes))
        stored = as_stored(shapes, config)
        # Low-rank updates are added before anything is rounded.
        rounds = weights and not config.decoder.lora.rank
        convert = leaf_in_int8 if rounds else lambda path, x: x
        whole = by_path(import_parts(config.pretrained, tokenizer, stored, shardings, convert))
        left_out = matches(parts["left_out"])
        imported = {path: x for path, x in whole.items() if left_out(path)}
    own, own_shardings = (
        nested({path: x for path, x in by_path(tree).items() if path not in imported})
        for tree in (shapes, shardings)
    )
    params: Any
    if not own:
        params = {}
    elif workdir.is_export:
        params = read_exported(workdir, own, own_shardings)
    else:
        with Checkpoints(workdir.path, config.train.keep_best) as checkpoints:
            params = checkpoints.restore_best(own, own_shardings)
    params = merge(params, nested(imported))
    if weights:
        config, params = merged(config, params)
        model, params = make_model(config, tokenizer), in_int8(params)
    runner = Runner(model, params, tokenizer, mesh, imported)
    if drafter:
        is_whisper = config_of(drafter).whisper_decoder.present
        drafts = load(
            drafter,
            mesh,
            silence=silence if is_whisper else None,
            dtype=dtype,
            timestamps=timestamps and is_whisper,
            weights=weights,
        )
        runner.drafter = DraftModel(drafts, runner, str(draft_model))
    return runner


def tokenizer_of(workdir: Workdir, config: Config) -> Tokenizer:
    """A model's own tokenizer, or that of its Whisper or speech LLM, which is not repeated.

    Args:
        workdir: the model.
        config: names the Whisper or speech LLM.

    Raises:
        WorkdirError, TokenizerError, PretrainedError: there is none, or it cannot be used.
    """
    if workdir.tokenizer is not None:
        return Tokenizer.load(workdir.tokenizer)
    if not config.pretrained.model:
        raise WorkdirError(f"{workdir.path} has no tokenizer: train first")
    folder, labels = resolve(config.pretrained.model), workdir.path / CTC_NAME
    if not (config.speech_llm.present or (folder / "tokenizer.json").exists()):
        raise TokenizerError(
            f"{folder} has no tokenizer.json: put that of the same Whisper beside its weights"
        )
    tokenizer = Tokenizer.load(folder)
    return tokenizer.with_ctc(Tokenizer.load(labels)) if labels.exists() else tokenizer


def _check_parts(
    workdir: Workdir, config: Config, tokenizer: Tokenizer, paths: Iterable[str]
) -> None:
    """Compares the pretrained parts with those that the model was trained behind.

    What drafts for one Whisper drafts for another of its size as well, if not as often rightly, and
    its text is then that of the other. So a fine-tuned Whisper is taken, and said to be one; unless
    the model has changed some of its Whisper itself. The same holds for a speech LLM.
    """
    parts = workdir.read_parts() or {}
    changed = workdir.changed_parts(digests(config.pretrained))
    if not changed:
        return
    if changed == ["model"]:
        check_sizes(config, parts.get("vocab_size", tokenizer.vocab_size))
        is_left_out = matches(parts["left_out"])
        of_model = tuple(f"{name}/" for name in finished_parts(config))
        if all(is_left_out(path) for path in paths if path.startswith(of_model)):
            log.warning(
                "%s holds other weights than those that %s was trained for (another precision, or"
                " fine-tuned): its text is exact, with more decoder calls than it could have",
                *(config.pretrained.model, workdir.path),
            )
            return
    workdir.record_pretrained(digests(config.pretrained), parts["left_out"])
