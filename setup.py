"""What pyproject.toml has no words for: an installed package holds ``configs/`` too."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mtp_jax*"]), "mtp_jax.configs"],
    package_dir={"mtp_jax.configs": "configs"},
)
