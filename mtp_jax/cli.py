"""What the command lines share: starting JAX, and turning expected errors into one sentence.

A command that runs a model may be started as several processes, each with ``--coordinator``,
``--processes`` and ``--process_id``, or the environment variables MTP_COORDINATOR, MTP_PROCESSES
and MTP_PROCESS_ID.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from mtp_jax import terminal
from mtp_jax.config import Config, ConfigError
from mtp_jax.flag_checks import refuse_empty

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("MTP_COORDINATOR", ""),
    "of several processes: HOST:PORT of process 0, or auto on TPU pods, GKE and Slurm",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", os.environ.get("MTP_PROCESSES", "-1"), "how many there are"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", os.environ.get("MTP_PROCESS_ID", "-1"), "which of them this is, from 0"
)
_LOST_AFTER = flags.DEFINE_integer(
    "lost_after",
    os.environ.get("MTP_LOST_AFTER", "60"),
    "seconds without a sign of life after which a process is taken for dead and the others end",
)
# What is defined by functions of this module belongs to the commands that call them, in --help too.
flags.disclaim_key_flags()


def encoder_flag() -> flags.FlagHolder[str]:
    """``--encoder``, of commands that load a model whose frozen speech encoder lies elsewhere."""
    return flags.DEFINE_string(
        "encoder",
        os.environ.get("MTP_ENCODER", ""),
        "folder or source of the frozen speech encoder; default: where the model was trained",
    )


def refuse_arguments(argv: list[str]) -> None:
    """Raises `flags.Error` if there are arguments besides flags."""
    if len(argv) > 1:
        raise flags.Error(f"unexpected argument {argv[1]!r}: every option is a --flag")


def start_jax(config: Config) -> None:
    """Joins the other processes of the run, and turns on JAX's persistent compilation cache.

    Raises:
        ProcessError: the other processes cannot be found.
    """
    import jax  # imported late: help and errors in flags come at once

    from mtp_jax.distributed import multihost

    multihost.join(
        multihost.Group(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _LOST_AFTER.value)
    )
    if not multihost.is_process_zero():  # what all have to say is said once
        logging.getLogger("mtp_jax").setLevel(logging.WARNING)

    folder = pathlib.Path(config.data.cache_dir).expanduser() / "compiled"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


# A disk that is full or failing, a quota, a folder that may not be written.
_NO_FAULT_OF_THE_CODE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ESTALE),
}


def run(main: Callable[[list[str]], int | None]) -> int:
    """Runs a command; expected errors become one sentence on stderr.

    Returns:
        Exit status: what `main` returns (0 for None), 1 after an expected error, 2 if the flags are
        wrong, 75 where another process of the run is gone, 143 after SIGTERM.
    """
    status = 0
    terminal.show_every_character()

    def guarded(argv: list[str]) -> None:
        nonlocal status
        _quiet()
        status = _guard(main, argv)
        if failure := terminal.output_failure():
            print(f"error: {failure}", file=sys.stderr)
            status = status or 1

    try:
        app.run(guarded, flags_parser=_parse)
    except SystemExit as stop:
        status = status or int(stop.code or 0)
    _leave(status)
    return status


def _leave(status: int) -> None:
    """Ends one of several processes; one that failed waits for none of the others.

    They learn of it by its silence, and end too.
    """
    jax = sys.modules.get("jax")
    if status and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _quiet() -> None:
    """Our own messages as plain lines on stderr; of other packages only warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("mtp_jax")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers = [handler]


def last_of_each(argv: list[str]) -> list[str]:
    """Without the tuples of the config that are given again: the last one counts, as of any field.

    config_flags would make one tuple of them all.
    """
    tuples = [re.match(r"--?(config\.[^=]+)=\(", argument) for argument in argv]
    last = {found[1]: i for i, found in enumerate(tuples) if found}
    return [
        argument
        for i, (argument, found) in enumerate(zip(argv, tuples, strict=True))
        if not found or last[found[1]] == i
    ]


def _parse(argv: list[str]) -> list[str]:
    try:
        arguments: list[str] = flags.FLAGS(last_of_each(argv))
        refuse_empty(flags.FLAGS)
        return arguments
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
    except OSError as error:
        if failure := terminal.output_failure():
            print(f"error: {failure}", file=sys.stderr)
            return 1
        if error.errno not in _NO_FAULT_OF_THE_CODE:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if not _lost_another(error):
            raise
        print(
            f"error: another process of the run ended or cannot be reached ({_sentence(error)}):"
            " start all of them again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return sys.modules["mtp_jax.distributed.multihost"].LOST
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130


def _lost_another(error: Exception) -> bool:
    """Whether `error` is what remains of a collective when one of several processes dies."""
    jax = sys.modules.get("jax")
    return (
        jax is not None
        and jax.distributed.is_initialized()
        and isinstance(error, jax.errors.JaxRuntimeError)
        and any(sign in str(error) for sign in ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED"))
    )


def _sentence(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
