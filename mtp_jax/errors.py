"""The errors that a command line turns into one sentence: each names a culprit and a remedy."""

from __future__ import annotations


def expected() -> tuple[type[Exception], ...]:
    """Every error of the package that is the fault of an input, not of the code."""
    from mtp_jax.audio import AudioError
    from mtp_jax.checkpoint import CheckpointError
    from mtp_jax.config import ConfigError
    from mtp_jax.data import DataError
    from mtp_jax.decoding import DraftsError
    from mtp_jax.importers import PretrainedError
    from mtp_jax.processes import ProcessError
    from mtp_jax.sharding import MeshError
    from mtp_jax.tokenizer import TokenizerError
    from mtp_jax.tpu.chips import TopologyError
    from mtp_jax.tpu.compiled import CompileError
    from mtp_jax.training import TrainingStopped
    from mtp_jax.workdir import WorkdirError

    return (
        AudioError,
        CheckpointError,
        CompileError,
        ConfigError,
        DataError,
        DraftsError,
        MeshError,
        PretrainedError,
        ProcessError,
        TokenizerError,
        TopologyError,
        TrainingStopped,
        WorkdirError,
    )
