"""The folder of a model: whether it is one, and which model it holds."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator

from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import ConfigError
from mtp_jax.inference.whisper_folder import WhisperFolder, is_whisper_folder
from mtp_jax.paths import to_path
from mtp_jax.tokenizer import CTC_NAME


def open_model_folder(folder: str | os.PathLike[str]) -> Workdir:
    """The workdir, export or Whisper at `folder` (or ``hf://OWNER/NAME``); no parameters are read.

    Raises:
        WorkdirError: it is none of these, or of another version.
        PretrainedError: it cannot be downloaded, or is a damaged Whisper.
    """
    if str(folder).startswith("hf://") or is_whisper_folder(to_path(folder)):
        whisper = WhisperFolder(folder)
        whisper.read_config()
        return whisper
    workdir = Workdir(folder)
    if not workdir.path.is_dir():
        raise WorkdirError(f"{workdir.path} is no folder of a model: give a workdir or an export")
    try:
        workdir.read_config()
    except ConfigError as error:
        raise WorkdirError(f"{workdir.path} is of another version of mtp_jax: {error}") from None
    return workdir


def model_digest(workdir: Workdir) -> str:
    """SHA-256 (hexadecimal) of all that decides what the model makes of a recording.

    That is its config, tokenizers, parameters, confidences, and the digests of the pretrained parts
    that lie elsewhere, all by their contents: a copy of a model is the same model. A workdir counts
    with all its best checkpoints. Loading reads the same files, so that this costs a second for a
    gigabyte, and the disk nothing.

    Raises:
        WorkdirError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _model_files(workdir):
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise WorkdirError(f"{file} cannot be read ({error.strerror})") from None
        name = file.relative_to(workdir.path).as_posix()
        digest.update(name.encode() + b"\0" + content.digest())
    return digest.hexdigest()


def _model_files(workdir: Workdir) -> Iterator[pathlib.Path]:
    w = workdir
    names = ("tokenizer.json", "tokenizer.model", CTC_NAME, "model.safetensors")
    files = [w.config, w.parts, w.confidence, w.heads, w.exported, *(w.path / n for n in names)]
    checkpoints = [] if w.exported.exists() else sorted((w.path / "best").rglob("*"))
    weights = w.weights if isinstance(w, WhisperFolder) else []
    files += [*weights, w.path / "generation_config.json"]
    yield from (file for file in [*files, *checkpoints] if file.is_file())
