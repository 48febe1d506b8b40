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

What was added to a finished Whisper or speech LLM is all in ``heads.safetensors``: the folder holds
nothing of that model, whose tokenizer serves too. LoRA is merged into the matrices it belongs to.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.digest import file_digest
from mtp_jax.checkpoints.workdir import Workdir, write_json
from mtp_jax.config import Config, Lora, Mesh, Pretrained
from mtp_jax.distributed.multihost import place_whole
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.params import Params, by_path, matches, merge_lora, nested, split
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.paths import check_writable, partial_name
from mtp_jax.pretrained import export_llama, hf_config, import_llama
from mtp_jax.pretrained.int8 import from_int8, to_int8
from mtp_jax.pretrained.parts import digests
from mtp_jax.pretrained.weights import refuse_not_finite
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError
from mtp_jax.tokenizer.whisper import RULES

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
    source: str = "",
) -> None:
    """Writes a trained model to `folder`.

    Args:
        trained: the model; `workdir`: where it was trained.
        folder: made if need be.
        dtype: of the parameters, a key of `DTYPES`; float32 keeps every bit. "int8" is for what was
            added to a finished model.
        source: of what the export leaves out (a frozen speech encoder, or a whole Whisper or speech
            LLM), which it names; that of training by default. Whoever loads the export is told if
            it is another.

    Raises:
        CheckpointError: the folder cannot be written, or is a workdir; an export that was there
            stays as it was. Or `dtype` is not one for this model, or this is a speech LLM that has
            decoded.
        OutputError: the folder cannot be written, as is seen before anything is.
    """
    check_target(workdir, folder)
    added = trained.model.config.extends_finished
    if dtype == "int8" and not added:
        raise CheckpointError(
            f"{workdir.path} is no model of heads for a Whisper or a speech LLM, and only these are"
            " exported as int8: choose another dtype"
        )
    if layer_name(0) in trained.params["decoder"]:
        raise CheckpointError(
            f"{workdir.path} has decoded, and its parameters are laid out for that: load it again"
        )
    config, own, left_out = _own(trained, workdir, source)
    new, target = Workdir(folder / partial_name()), Workdir(folder)
    try:
        new.path.mkdir(parents=True)
        if added:
            _save(_stored(own, dtype), new.heads)
            write_json(new.config, {"mtp_jax": dataclasses.asdict(config)})
        else:
            _write_speech_llama(trained, config, own, dtype, new)
        _write_tokenizer(trained.tokenizer, new.path, with_text=not (added and left_out))
        if left_out:
            write_json(new.parts, _parts(trained, workdir, left_out))
        if tau := workdir.read_tau():
            write_json(new.tau, tau)
        if workdir.confidence.exists():
            shutil.copyfile(workdir.confidence, new.confidence)
        written = {file.name: file_digest(file) for file in _weight_files(new) if file.exists()}
        write_json(new.digests, written)
        for old in (target.heads, *_of_another_export(target)):
            old.unlink(missing_ok=True)
        for file in sorted(new.path.iterdir(), key=lambda file: file == new.heads):
            file.replace(target.path / file.name)  # that one last: it makes the folder an export
    except (OSError, SafetensorError, TokenizerError) as error:
        said = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{folder} cannot be written: {said}") from error
    finally:
        shutil.rmtree(new.path, ignore_errors=True)


def _own(
    trained: Trained, workdir: Workdir, source: str
) -> tuple[Config, dict[str, Any], list[str]]:
    """What an export holds.

    Returns:
        Its config, its parameters by path, and the paths of those that come from `source`.
    """
    updates = [path for path in by_path(trained.params) if path.endswith("lora_a")]
    config, params = merged(trained.model.config, jax.device_get(trained.params))
    added = config.extends_finished
    # What is exported although it was imported.
    changed = [path.removesuffix("lora_a") + "kernel" for path in updates]
    whole = tuple(changed) if added else ("decoder/", *changed)
    is_left_out = matches((workdir.read_parts() or {"left_out": []})["left_out"])
    leaves = by_path(params)
    left_out = sorted(p for p in leaves if is_left_out(p) and not p.startswith(whole))
    field = "model" if added else "encoder"
    named = {field: source or getattr(config.pretrained, field)} if left_out else {}
    data = config.data
    if data.text == "greedy" and not named:  # there is no other model that writes it
        data = dataclasses.replace(data, text="as_is")
    config = dataclasses.replace(
        config,
        pretrained=Pretrained(**named),
        data=data,
        tokenizer=dataclasses.replace(config.tokenizer, model="", retrained=False),
        init_from="",
        mesh=Mesh(),
    )
    return config, {path: x for path, x in leaves.items() if path not in left_out}, left_out


def _parts(trained: Trained, workdir: Workdir, left_out: list[str]) -> dict[str, Any]:
    """What ``parts.json`` says of the parameters that are left out."""
    config = trained.model.config
    field = "model" if config.extends_finished else "encoder"
    known = (workdir.read_parts() or {"sha256": {}})["sha256"]
    digest = known.get(field) or digests(config.pretrained)[field]
    tokens = {"vocab_size": trained.model.vocabulary.size} if field == "model" else {}
    return {"sha256": {field: digest}, "left_out": left_out, **tokens}


def _write_speech_llama(
    trained: Trained, config: Config, own: dict[str, Any], dtype: str, new: Workdir
) -> None:
    """Writes config and parameters of a model with a LLaMA."""
    decoder, rest = split(nested(own), lambda path: path.startswith("decoder/"))
    speech, heads = split(rest, lambda path: path.startswith(SPEECH))
    vocabulary = trained.model.vocabulary
    llama = hf_config(config.decoder, vocabulary.size, vocabulary.bos, vocabulary.eos)
    ours = {"mtp_jax": dataclasses.asdict(config), "torch_dtype": dtype}
    write_json(new.config, llama | ours)
    _save(_stored(export_llama(decoder["decoder"]), dtype), new.decoder)
    _save(_stored(by_path(heads), dtype), new.heads)
    _save(_stored(by_path(speech), dtype), new.speech)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, with_text: bool) -> None:
    """Writes the tokenizer; only that of CTC's labels if `with_text` is False."""
    if with_text:
        tokenizer.save(folder)
    elif tokenizer.ctc is not tokenizer:
        tokenizer.ctc.save(folder / CTC_NAME)


def _stored(leaves: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Parameters as a file holds them: numbers of tokens as they are, all others as `dtype`."""
    if dtype == "int8":
        return to_int8(leaves)
    return {
        path: np.ascontiguousarray(x, DTYPES[dtype] if _is_float(x) else x.dtype)
        for path, x in leaves.items()
    }


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


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
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", CTC_NAME, RULES)
    files = [target.parts, target.tau, target.confidence, target.speech, target.decoder]
    return [*files, *(target.path / name for name in names)]


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path)
    path.chmod(0o644)  # safetensors lets nobody else read it


def merged(config: Config, params: Params) -> tuple[Config, Params]:
    """Config and parameters without LoRA, whose updates go into their matrices."""
    params = dict(params)
    group = "whisper_decoder" if config.whisper_decoder.present else "decoder"
    groups = {"whisper": config.whisper, "decoder": getattr(config, group)}
    for name, part in groups.items():
        if part.lora.rank:
            params[name] = merge_lora(params[name], part.lora)
    without = {
        group: dataclasses.replace(getattr(config, group), lora=Lora())
        for group in ("whisper", "decoder", "whisper_decoder")
    }
    return dataclasses.replace(config, **without), params


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
    wanted, place = by_path(shapes), by_path(shardings)
    files = [workdir.heads]
    decoder: Params = {}
    if not workdir.read_config().extends_finished:
        files.insert(0, workdir.speech)
        decoder["decoder"] = import_llama(workdir.path, shapes["decoder"], shardings["decoder"])
        wanted = {path: x for path, x in wanted.items() if not path.startswith("decoder/")}
    found: dict[str, np.ndarray] = {}
    for file in files:
        try:
            found |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    found = from_int8(found)
    wrong = set(found.keys() ^ wanted.keys())
    wrong |= {path for path in found.keys() & wanted if found[path].shape != wanted[path].shape}
    if wrong:
        raise CheckpointError(
            f"{workdir.path} is not what its config describes: {', '.join(sorted(wrong)[:4])}"
            " is missing, left over or of another shape; export it again"
        )
    for path, x in found.items():
        if _is_float(x):
            refuse_not_finite(workdir.path, path, x)
    own = {
        path: place_whole(found[path].astype(x.dtype), place[path]) for path, x in wanted.items()
    }
    return nested(own) | decoder


def _weight_files(workdir: Workdir) -> tuple[Path, ...]:
    return (workdir.decoder, workdir.heads, workdir.speech)


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
