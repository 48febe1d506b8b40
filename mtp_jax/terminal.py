"""What the command lines write to their terminal, whatever can be shown there or written."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any

from mtp_jax.paths import OutputError

_ESCAPE = "mtp_jax.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


class _Raw(io.RawIOBase):
    """A file descriptor that fails once with a sentence, or never, and takes all after that.

    So neither a traceback follows the sentence, nor does Python fail again as it ends.
    """

    def __init__(self, descriptor: int, reports: bool) -> None:
        self._descriptor, self._reports, self._failed = descriptor, reports, False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        if not self._failed:
            try:
                return os.write(self._descriptor, content)
            except OSError as error:
                self._failed = True
                if self._reports:
                    raise OutputError(
                        f"what is printed cannot be written ({error.strerror}): see to standard"
                        " output"
                    ) from None
        return memoryview(content).nbytes


def prepare() -> None:
    r"""Has standard output and error show every character, and fail with a sentence if at all.

    What they cannot encode is written as JSON does, ``\u00fc``: an ASCII terminal, or a name that
    is not Unicode, ends no command, and JSON stays JSON. Output that cannot be written raises
    `OutputError`; messages that cannot be written are lost, and the work goes on.
    """
    codecs.register_error(_ESCAPE, _escape)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _over(sys.stdout, reports=True)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _over(sys.stderr, reports=False)


def _over(stream: io.TextIOWrapper, reports: bool) -> io.TextIOWrapper:
    stream.flush()
    raw = _Raw(stream.fileno(), reports)
    lines = raw.isatty() or not reports
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, _ESCAPE, line_buffering=lines)
