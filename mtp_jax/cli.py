"""What the command lines share: starting JAX, and turning expected errors into one sentence."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from mtp_jax.config import Config, ConfigError


def refuse_arguments(argv: list[str]) -> None:
    """Raises `flags.Error` if there are arguments besides flags."""
    if len(argv) > 1:
        raise flags.Error(f"unexpected argument {argv[1]!r}: every option is a --flag")


def start_jax(config: Config) -> None:
    """Turns on JAX's persistent compilation cache, under the run's cache folder."""
    import jax  # imported late: help and errors in flags come at once

    folder = pathlib.Path(config.data.cache_dir).expanduser() / "compiled"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def run(main: Callable[[list[str]], int | None]) -> int:
    """Runs a command; expected errors become one sentence on stderr.

    Returns:
        Exit status: what `main` returns (0 for None), 1 after an expected error, 2 if the flags are
        wrong, 143 after SIGTERM.
    """
    status = 0

    def guarded(argv: list[str]) -> None:
        nonlocal status
        _quiet()
        status = _guard(main, argv)

    try:
        app.run(guarded, flags_parser=_parse)
    except SystemExit as stop:
        return status or int(stop.code or 0)
    return status


def _quiet() -> None:
    """Our own messages as plain lines on stderr; of other packages only warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("mtp_jax")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers = [handler]


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # config_flags reports an override of an unknown field in one of several ways.
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _guard(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    from mtp_jax.errors import expected  # imported late, as above

    try:
        return main(argv) or 0
    except (flags.Error, ConfigError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except expected() as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


def _sentence(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
