"""A folder to a `Transcriber`."""

from __future__ import annotations

import json
import os

import jax

from mtp_jax import config as configs
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import ConfigError
from mtp_jax.distributed import sharding
from mtp_jax.inference.load import load as load_recognizer
from mtp_jax.transcription.confidence import Calibration, read_calibration
from mtp_jax.transcription.transcriber import Transcriber


def load(
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    mesh: jax.sharding.Mesh | None = None,
    encoder: str = "",
) -> Transcriber:
    """Loads a model to transcribe with.

    Args:
        folder: a workdir, or a folder that a model was exported to.
        batch_size: pieces of audio that are decoded at once, at most.
        mesh: the devices; all by default, each with a copy of the model and its share of a batch.
        encoder: folder or source of the frozen speech encoder; where training had it by default.

    Raises:
        WorkdirError, CheckpointError, TokenizerError, PretrainedError: the folder is incomplete,
            damaged or of another version; the message says what is wrong.
    """
    workdir = Workdir(folder)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    if not workdir.path.is_dir():
        raise WorkdirError(f"{workdir.path} is no folder of a model: give a workdir or an export")
    try:
        workdir.read_config()
    except ConfigError as error:
        raise WorkdirError(f"{workdir.path} is of another version of mtp_jax: {error}") from None
    mesh = mesh or sharding.make_mesh(configs.Mesh())
    try:
        runner = load_recognizer(workdir, mesh, encoder)
    except OSError as error:
        raise WorkdirError(f"{workdir.path} cannot be used as a model: {error}") from None
    kept = workdir.read_tau()
    tau = kept["tau"] if kept else 0.9
    return Transcriber(runner, tau, calibration_of(workdir), batch_size)


def calibration_of(workdir: Workdir) -> Calibration | None:
    """That of a model's confidences; None before `mtp_jax.calibrate` has made it.

    Raises:
        WorkdirError: its file cannot be read.
    """
    try:
        return read_calibration(json.loads(workdir.confidence.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"{workdir.confidence} cannot be read ({error}): remove it") from error
