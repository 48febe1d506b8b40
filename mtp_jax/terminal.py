"""What the command lines write to their terminal, whatever can be shown there or written."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys

_ESCAPE = "mtp_jax.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def show_every_character() -> None:
    r"""Has standard output and error write what they cannot encode as JSON does, ``\u00fc``.

    So an ASCII terminal, or a name that is not Unicode, ends no command; and JSON stays JSON.
    """
    codecs.register_error(_ESCAPE, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPE)


def output_failure() -> str | None:
    """Writes out what was printed; why that failed, None if it did not.

    What was not written is given up, so that Python does not fail over it again as it ends.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a device, not a path
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        sys.stdout.flush()
        return f"what is printed cannot be written ({error.strerror}): see to standard output"
    return None
