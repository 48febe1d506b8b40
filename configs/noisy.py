"""The default in rooms and noise: hard enough for a recogniser to make errors.

    python -m mtp_jax.train --config=configs/noisy.py

A quarter of an hour on two CPU cores. ``configs/mwer.py`` goes on from it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config import load_config


def get_config() -> ConfigDict:
    """`configs/mtp.py` on the noisy corpus."""
    config = load_config(Path(__file__).with_name("mtp.py"))
    for split in ("train", "dev", "test"):
        config.data[split] = f"embedded/noisy:{split}"
    return config
