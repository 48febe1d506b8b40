"""The folder of a model: whether it is one, and which model it holds."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator

from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Config, ConfigError, Pretrained
from mtp_jax.inference.released_folder import ReleasedFolder
from mtp_jax.inference.speech_llm_folder import SpeechLlmFolder, is_speech_llm_folder
from mtp_jax.inference.whisper_folder import WhisperFolder, is_whisper_folder
from mtp_jax.paths import to_path
from mtp_jax.pretrained.parts import digests
from mtp_jax.pretrained.sizes import with_pretrained
from mtp_jax.pretrained.source import resolve
from mtp_jax.tokenizer import CTC_NAME
from mtp_jax.tokenizer.base import NAMES, VOCABULARY
from mtp_jax.tokenizer.vocabulary_files import MERGES
from mtp_jax.untrusted import check_links


def open_model_folder(folder: str | os.PathLike[str]) -> Workdir:
    """The workdir, export, Whisper or speech LLM at `folder` (or ``hf://OWNER/NAME``).

    No parameters are read.

    Raises:
        WorkdirError: it is none of these, of another version, or has links that lead out of it.
        PretrainedError: it cannot be downloaded, or is a damaged Whisper or speech LLM.
    """
    if released := _released(folder):
        try:
            released.read_config()
        except ConfigError as error:
            raise WorkdirError(
                f"{released.path} describes no model that can be built: {error}"
            ) from None
        return released
    workdir = Workdir(folder)
    if not workdir.path.is_dir():
        raise WorkdirError(
            f"{workdir.path} is no folder of a model: give a workdir, an export or a Whisper"
        )
    try:
        workdir.read_config()
    except ConfigError as error:
        raise WorkdirError(f"{workdir.path} is of another version of mtp_jax: {error}") from None
    return workdir


def _released(folder: str | os.PathLike[str]) -> ReleasedFolder | None:
    """The model of another program at `folder`, if it is one that can be used."""
    on_hub = str(folder).startswith("hf://")
    path = resolve(str(folder)) if on_hub else to_path(folder)
    try:
        check_links(path)
    except (OSError, ValueError) as error:
        raise WorkdirError(str(error)) from None
    if is_speech_llm_folder(path):
        return SpeechLlmFolder(folder)
    return WhisperFolder(folder) if on_hub or is_whisper_folder(path) else None


def config_of(workdir: Workdir, pretrained: str = "") -> Config:
    """The config of a model whose Whisper, or speech encoder, is at `pretrained` if that is given.

    Raises:
        WorkdirError, PretrainedError: the folder is none of a model.
    """
    config = workdir.read_config()
    return config if isinstance(workdir, ReleasedFolder) else with_pretrained(config, pretrained)


def model_digest(workdir: Workdir, pretrained: str = "") -> str:
    """SHA-256 (hexadecimal) of all that decides what the model makes of a recording.

    That is its config, tokenizers, parameters, confidences, the digests of the pretrained parts
    that lie elsewhere and the values of the Whisper that is used, all by their contents: a copy of
    a model is the same model. A workdir counts with all its best checkpoints. Loading reads the
    same files, so that this costs a second for a gigabyte, and the disk nothing.

    Args:
        workdir: the model.
        pretrained: where its Whisper is, as `config_of`.

    Raises:
        WorkdirError, PretrainedError: a file cannot be read.
    """
    digest = hashlib.sha256()
    if not isinstance(workdir, ReleasedFolder):
        used = config_of(workdir, pretrained).pretrained.model
        digest.update(digests(Pretrained(model=used)).get("model", "").encode())
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
    names = (*NAMES, VOCABULARY, MERGES, CTC_NAME, "model.safetensors")
    files = [w.config, w.parts, w.confidence, w.heads, w.speech, *(w.path / n for n in names)]
    checkpoints = [] if w.is_export else sorted((w.path / "best").rglob("*"))
    released = w.own_files if isinstance(w, ReleasedFolder) else []
    files += [*released, w.path / "generation_config.json"]
    yield from (file for file in [*files, *checkpoints] if file.is_file())
