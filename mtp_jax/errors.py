"""The errors that a command line turns into one sentence: each names a culprit and a remedy."""

from __future__ import annotations


def expected() -> tuple[type[Exception], ...]:
    """Every error of the package that is the fault of an input, not of the code."""
    from mtp_jax.audio.reading import AudioError
    from mtp_jax.checkpoints.checkpoint import CheckpointError
    from mtp_jax.checkpoints.workdir import WorkdirError
    from mtp_jax.config import ConfigError
    from mtp_jax.data import DataError
    from mtp_jax.decoding import DraftsError
    from mtp_jax.distributed.multihost import ProcessError
    from mtp_jax.distributed.sharding import MeshError
    from mtp_jax.paths import OutputError
    from mtp_jax.planning.chips import TopologyError
    from mtp_jax.planning.compiled import CompileError
    from mtp_jax.pretrained import PretrainedError
    from mtp_jax.tokenizer import TokenizerError
    from mtp_jax.tokenizer.whisper_tokens import LanguageError
    from mtp_jax.training.monitor import TrainingStopped

    return (
        AudioError,
        CheckpointError,
        CompileError,
        ConfigError,
        DataError,
        DraftsError,
        LanguageError,
        MeshError,
        OutputError,
        PretrainedError,
        ProcessError,
        TokenizerError,
        TopologyError,
        TrainingStopped,
        WorkdirError,
    )
