"""Minimum word error rate training of a finished model.

    python -m mtp_jax.train --config=configs/noisy.py
    python -m mtp_jax.train --config=configs/mwer.py

The model is that of ``runs/noisy``, or of ``--config.init_from=WORKDIR``. One that was trained with
another config, say ``configs/whisper.py``, names it: ``--config=configs/mwer.py:whisper``. The same
steps of cross-entropy alone, to compare with, are ``--config.mwer.weight=0``.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config import load_config
from mtp_jax.decoding import registry


def get_config(base: str = "noisy") -> ConfigDict:
    """Args: base: the config, of this folder, that the model was trained with."""
    config = load_config(Path(__file__).with_name(f"{base}.py"))
    config.init_from = f"runs/{base}"
    config.mwer.weight = 1.0
    config.mwer.cross_entropy = 0.1
    config.optim.steps = 400
    config.optim.warmup_steps = 20
    config.optim.learning_rate = 3e-4
    config.train.dev_every = 100
    config.train.checkpoint_every = 100
    config.evaluation.strategies = registry.names(lambda entry: not entry.adaptive)
    return config
