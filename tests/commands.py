"""Commands run in this process, as a shell would run them; starting Python anew costs seconds."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
from typing import NamedTuple
from unittest import mock

from absl import flags

from mtp_jax import cli


class Done(NamedTuple):
    """What became of a command."""

    status: int
    out: str
    err: str


def run(name: str, *arguments: str | os.PathLike[str], stdin: bytes = b"") -> Done:
    """Runs ``mtp_jax.NAME`` with these arguments."""
    module = importlib.import_module(_alone(name))
    out, err = io.StringIO(), io.StringIO()
    log = logging.getLogger("mtp_jax")
    before = log.handlers, log.propagate, log.level
    argv = [name, *map(os.fspath, arguments)]
    try:
        with (
            mock.patch.object(sys, "argv", argv),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = cli.run(module.main)
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        log.handlers, log.propagate, log.level = before
        flags.FLAGS.unparse_flags()
    return Done(status, out.getvalue(), err.getvalue())


def _alone(name: str) -> str:
    """The command's module, with the flags of no other and all at their defaults."""
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith("mtp_jax.") and module != "mtp_jax.cli":
            for flag in list(defined):
                if flag.name in flags.FLAGS:
                    delattr(flags.FLAGS, flag.name)
            sys.modules.pop(module, None)
    full = f"mtp_jax.{name}"
    sys.modules.pop(full, None)
    for flag in flags.FLAGS.flags_by_module_dict().get("mtp_jax.cli", []):
        flag.unparse()
    return full
