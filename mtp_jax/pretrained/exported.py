"""A trained model as one folder that other programs can read, and back.

The folder holds what a workdir does, under the names that a workdir has, but for the parameters:

- ``model.safetensors`` and ``config.json``: the decoder, as `transformers` reads it; this project's
  own config stands in the latter under ``mtp_jax``;
- ``speech.safetensors``: what listens (encoders, CTC head), by its path in the tree of parameters;
  models behind one frozen encoder have this file in common, byte for byte;
- ``heads.safetensors``: all else;
- ``digests.json``: what the contents of these files must be;
- ``tokenizer.model`` or ``tokenizer.json``; ``parts.json`` names what has to be imported from
  elsewhere (a frozen Whisper encoder), by digest; ``tau.json``; ``confidence.json``.

LoRA is merged into the matrices it belongs to.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.digest import file_digest
from mtp_jax.checkpoints.workdir import Workdir, write_json
from mtp_jax.config import Config, Lora, Mesh
from mtp_jax.distributed.multihost import place_whole
from mtp_jax.models.params import Params, by_path, merge_lora, nested, split
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.paths import check_writable, partial_name
from mtp_jax.pretrained import export_llama, hf_config, import_llama
from mtp_jax.pretrained.weights import refuse_not_finite
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError

SPEECH = ("whisper/", "encoder/", "ctc/")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}


class Trained(Protocol):
    """A model with its parameters and its tokenizer."""

    model: Recogniser
    params: Params
    tokenizer: Tokenizer


def export(
    trained: Trained,
    workdir: Workdir,
    folder: Path,
    dtype: str = "float32",
    encoder: str = "",
) -> None:
    """Writes a trained model to `folder`.

    Args:
        trained: the model; `workdir`: where it was trained.
        folder: made if need be.
        dtype: of the parameters, a key of `DTYPES`; float32 keeps every bit.
        encoder: source of a frozen speech encoder that the export names; that of training by
            default. Whoever loads the export is told if it is another.

    Raises:
        CheckpointError: the folder cannot be written, or is a workdir; an export that was there
            stays as it was.
        OutputError: the folder cannot be written, as is seen before anything is.
    """
    if trained.model.config.whisper_decoder.present:
        raise CheckpointError(
            f"{workdir.path} holds heads of a Whisper, which are not exported yet: use the workdir"
            " itself, beside the Whisper that it names"
        )
    check_target(workdir, folder)
    target = Workdir(folder)
    updates = [path for path in by_path(trained.params) if path.endswith("lora_a")]
    config, params = merged(trained.model.config, jax.device_get(trained.params))
    parts = workdir.read_parts() or {"sha256": {}, "left_out": []}
    changed = {path.removesuffix("lora_a") + "kernel" for path in updates}
    whole = ("decoder/", *changed)  # what is exported although it was imported
    left_out = [path for path in parts["left_out"] if not path.startswith(whole)]
    # What is exported whole is no longer taken from where it came from.
    encoder = (encoder or config.pretrained.encoder) if left_out else ""
    pretrained = dataclasses.replace(config.pretrained, encoder=encoder, decoder="", ctc="")
    tokenizer = dataclasses.replace(config.tokenizer, model="", retrained=False)
    config = dataclasses.replace(
        config, pretrained=pretrained, tokenizer=tokenizer, init_from="", mesh=Mesh()
    )
    rest, decoder = split(params, lambda path: not path.startswith("decoder/"))
    own = {path: x for path, x in by_path(rest).items() if path not in left_out}
    speech = {path: x for path, x in own.items() if path.startswith(SPEECH)}
    heads = {path: x for path, x in own.items() if path not in speech}
    vocabulary = trained.model.vocabulary
    llama = hf_config(config.decoder, vocabulary.size, vocabulary.bos, vocabulary.eos)

    def cast(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
        return {k: np.ascontiguousarray(x, DTYPES[dtype]) for k, x in leaves.items()}

    new = Workdir(target.path / partial_name())
    try:
        new.path.mkdir(parents=True)
        _save(cast(export_llama(decoder["decoder"])), new.path / "model.safetensors")
        ours = {"mtp_jax": dataclasses.asdict(config), "torch_dtype": dtype}
        write_json(new.config, llama | ours)
        trained.tokenizer.save(new.path)
        if left_out:
            digest = {"encoder": parts["sha256"]["encoder"]}
            write_json(new.parts, {"sha256": digest, "left_out": left_out})
        if tau := workdir.read_tau():
            write_json(new.tau, tau)
        if workdir.confidence.exists():
            shutil.copyfile(workdir.confidence, new.confidence)
        _save(cast(heads), new.heads)
        _save(cast(speech), new.exported)
        write_json(new.digests, {file.name: file_digest(file) for file in _weight_files(new)})
        for old in (target.exported, *_of_another_export(target)):
            old.unlink(missing_ok=True)
        for file in sorted(new.path.iterdir(), key=lambda file: file == new.exported):
            file.replace(target.path / file.name)  # that one last: it makes the folder an export
    except (OSError, SafetensorError, TokenizerError) as error:
        said = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{folder} cannot be written: {said}") from error
    finally:
        shutil.rmtree(new.path, ignore_errors=True)


def check_target(workdir: Workdir, folder: Path) -> None:
    """Finds out whether a model can be exported to `folder`, before it is loaded.

    Raises:
        CheckpointError: it is the model's own, or holds another one's checkpoints.
        OutputError: it cannot be written.
    """
    itself = folder.exists() and workdir.path.exists() and folder.samefile(workdir.path)
    if itself or any((folder / name).exists() for name in ("checkpoints", "best")):
        raise CheckpointError(
            f"{folder} is the model itself, or a workdir with checkpoints: choose another folder"
        )
    check_writable(folder, "output")


def _of_another_export(target: Workdir) -> list[Path]:
    """What an export may have and another not."""
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", CTC_NAME)
    return [target.parts, target.tau, target.confidence, *(target.path / name for name in names)]


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path)
    path.chmod(0o644)  # safetensors lets nobody else read it


def merged(config: Config, params: Params) -> tuple[Config, Params]:
    """Config and parameters without LoRA, whose updates go into their matrices."""
    params = dict(params)
    for name, lora in (("whisper", config.whisper.lora), ("decoder", config.decoder.lora)):
        if lora.rank:
            params[name] = merge_lora(params[name], lora)
    whisper = dataclasses.replace(config.whisper, lora=Lora())
    decoder = dataclasses.replace(config.decoder, lora=Lora())
    return dataclasses.replace(config, whisper=whisper, decoder=decoder), params


def read_exported(workdir: Workdir, shapes: Params, shardings: Params) -> Params:
    """Parameters of an exported folder, on their devices.

    Args:
        workdir: the folder.
        shapes: of the parameters that it should hold; `shardings`: where each goes.

    Raises:
        CheckpointError: they are damaged, or not those that its config describes.
        PretrainedError: the same of the decoder, or a number is not finite.
    """
    from safetensors.numpy import load_file

    _check_digests(workdir)
    decoder = import_llama(workdir.path, shapes["decoder"], shardings["decoder"])
    found: dict[str, np.ndarray] = {}
    for file in (workdir.exported, workdir.heads):
        try:
            found |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    wanted, place = by_path(shapes), by_path(shardings)
    wanted = {path: x for path, x in wanted.items() if not path.startswith("decoder/")}
    wrong = set(found.keys() ^ wanted.keys())
    wrong |= {path for path in found.keys() & wanted if found[path].shape != wanted[path].shape}
    if wrong:
        raise CheckpointError(
            f"{workdir.path} is not what its config describes: {', '.join(sorted(wrong)[:4])}"
            " is missing, left over or of another shape; export it again"
        )
    for path, x in found.items():
        refuse_not_finite(workdir.path, path, x)
    speech = {
        path: place_whole(found[path].astype(x.dtype), place[path]) for path, x in wanted.items()
    }
    return nested(speech) | {"decoder": decoder}


def _weight_files(workdir: Workdir) -> tuple[Path, ...]:
    return (workdir.path / "model.safetensors", workdir.heads, workdir.exported)


def _check_digests(workdir: Workdir) -> None:
    """Compares the files of weights with what was exported; earlier versions noted nothing of it.

    Raises:
        CheckpointError: one of them cannot be read, or is another.
    """
    noted = workdir.read_digests()
    for file in _weight_files(workdir):  # whatever else an untrusted one may name
        if file.name not in noted:
            continue
        try:
            found = file_digest(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        if found != noted[file.name]:
            raise CheckpointError(
                f"{file} is damaged, or was changed: its contents are not those that were exported"
                " (digests.json): put it back from a copy, or export again"
            )
