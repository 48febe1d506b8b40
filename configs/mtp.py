"""The default: the embedded corpus, two CPU cores, a quarter of an hour from start to table."""

from ml_collections import ConfigDict

from mtp_jax.config import Config, to_config_dict


def get_config() -> ConfigDict:
    """Everything is a default of `mtp_jax.config`."""
    return to_config_dict(Config())
