"""Config files: by path, or by name if they are the project's."""

from __future__ import annotations

import importlib.util
import os
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config.checks import ConfigError

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of an installed package; a clone


def config_file(name: str | os.PathLike[str]) -> Path:
    """Where a config is.

    Args:
        name: the path of a file (it ends in ``.py``), or the name of one of the project's configs,
            such as ``mtp``.

    Raises:
        ConfigError: there is none of that name.
    """
    path = Path(name)
    if path.suffix == ".py":
        return path
    known = {file.stem: file for folder in _FOLDERS for file in sorted(folder.glob("*.py"))}
    if str(name) not in known:
        raise ConfigError(f"{name} is neither a .py file nor one of {', '.join(sorted(known))}")
    return known[str(name)]


def load_config(name: str | os.PathLike[str], *arguments: str) -> ConfigDict:
    """What a config file describes, every field open to changes.

    Args:
        name: as `config_file` takes it.
        arguments: of its ``get_config``, as ``--config=NAME:ARGUMENT`` gives one.

    Raises:
        ConfigError: there is none of that name, or it fails; the message says where.
    """
    file = config_file(name)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError(f"{file} is no file: configs/ holds some")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    except Exception as error:  # it is a program of the user's, and may raise anything
        of_file = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = getattr(error, "lineno", None) or (of_file[-1].lineno if of_file else "?")
        named = ":".join([str(file), *arguments])
        raise ConfigError(
            f"{named} fails with {type(error).__name__} ({error}), line {line}: mend it"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config of {file} returns no ConfigDict: end it with to_config_dict")
    return config
