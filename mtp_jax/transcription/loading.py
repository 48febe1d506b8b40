"""A folder to a `Transcriber`."""

from __future__ import annotations

import os

import jax

from mtp_jax import config as configs
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.distributed import sharding, startup
from mtp_jax.inference.load import load as load_recognizer
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.transcription.confidence import Calibration, read_calibration
from mtp_jax.transcription.transcriber import Transcriber
from mtp_jax.untrusted import read_json


def load(
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    mesh: jax.sharding.Mesh | None = None,
    pretrained: str = "",
    silence: float | None = None,
    dtype: str = "",
    timestamps: bool = False,
    heads: int = 0,
    draft_model: str | os.PathLike[str] = "",
    weights: str = "",
) -> Transcriber:
    """Loads a model to transcribe with.

    Args:
        folder: a workdir, or a folder that a model was exported to.
        batch_size: chunks of audio that are decoded at once, at most.
        mesh: the devices; all by default, each with a copy of the model and its share of a batch.
        pretrained: folder or source of the Whisper, or of the frozen speech encoder, that the model
            was trained behind; where training had it by default.
        silence: seconds of it that a Whisper hears behind each chunk; its own by default.
        dtype: of matrix products, "float32" or "bfloat16"; by default as trained, of a Whisper
            float32 on a CPU and bfloat16 elsewhere.
        timestamps: of a Whisper: segments are the phrases whose times it writes itself.
        heads: M of serial heads, which may be any; 0 for that of training.
        draft_model: folder of another model, such as a small Whisper, whose texts are drafts: the
            text stays the same, in fewer calls of the large model.
        weights: "int8" rounds the matrices of the decoder to 8 bits: on accelerators decoder calls
            take less time, and texts may differ in a word; by default they are not rounded.

    Raises:
        ConfigError: `silence` is negative, or the model is no Whisper; `dtype` or `weights` is none
            of these; the number of `heads` is fixed.
        WorkdirError, CheckpointError, TokenizerError, PretrainedError: the folder is incomplete,
            damaged or of another version, or `draft_model` hears audio at another rate; the
            message says what is wrong.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    workdir = open_model_folder(folder)
    startup.start(workdir.read_config().data.cache_dir)  # before anything asks for a device
    mesh = mesh or sharding.make_mesh(configs.Mesh())
    try:
        runner = load_recognizer(
            workdir, mesh, pretrained, silence, dtype, timestamps, heads, draft_model, weights
        )
    except OSError as error:
        raise WorkdirError(f"{workdir.path} cannot be used as a model: {error}") from None
    return Transcriber(runner, default_tau(workdir), calibration_of(workdir), batch_size)


def default_tau(workdir: Workdir) -> float:
    """tau of threshold decoding where none is given: the one chosen on dev, if there is one.

    Raises:
        WorkdirError: its file cannot be read.
    """
    chosen = workdir.read_tau()
    return float(chosen["tau"]) if chosen else 0.9


def calibration_of(workdir: Workdir) -> Calibration | None:
    """That of a model's confidences; None before `mtp_jax.calibrate` has made it.

    Raises:
        WorkdirError: its file cannot be read.
    """
    try:
        return read_calibration(read_json(workdir.confidence))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"{workdir.confidence} cannot be read ({error}): remove it") from error
