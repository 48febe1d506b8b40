"""The body of a request, within limits: nothing larger, slower or other than was agreed is held."""

from __future__ import annotations

import asyncio
import contextlib
import time

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from mtp_jax.serving.refusal import Refused

_FIELDS = 64 * 1024  # bytes beside the recording
# Others take quadratic time, have no inverse, or make characters that no answer can hold.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1")
_LINGER = 5.0  # s for the rest of a body that is not wanted


class Gone(Exception):
    """The client is."""


class Body:
    """The body of one request.

    Args:
        scope, receive: of ASGI.
        max_bytes: of the recording.
        max_seconds: that it may take to arrive.
    """

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int, max_seconds: float) -> None:
        self._scope, self._receive = scope, receive
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._deadline = time.monotonic() + max_seconds
        self._seen, self._more = 0, True
        self._error: Exception | None = None
        self._request = Request(scope, self._next)

    async def form(self) -> FormData:
        """Its fields; the recording is at most `max_bytes`.

        Raises:
            Refused: it is no form, or exceeds a limit.
            Gone: it will never be complete.
        """
        kind = self._request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "multipart/form-data":
            raise Refused(
                415, "the body is no multipart form: send the recording as multipart/form-data"
            )
        _check_charset(kind)
        length = self._request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes + _FIELDS:
            raise self._too_large()
        try:
            form = await self._parsed()
        except (HTTPException, MultiPartException, FormParserError) as error:
            if self._error:
                raise self._error from None
            said = str(getattr(error, "detail", None) or getattr(error, "message", error))
            raise Refused(
                400, f"the body is no well-formed multipart form ({said.rstrip('.')}): send it anew"
            ) from None
        for _, value in form.multi_items():
            if not isinstance(value, str) and (value.size or 0) > self._max_bytes:
                await form.close()
                raise self._too_large()
        return form

    async def _parsed(self) -> FormData:
        """The form; of one that ends amid a file, that file is in no field, and is closed here."""
        limits = {"max_files": 4, "max_fields": 64, "max_part_size": _FIELDS}
        async with contextlib.aclosing(self._request.stream()) as stream:
            parser = MultiPartParser(self._request.headers, stream, **limits)
            form = await parser.parse()
        held = {id(value.file) for _, value in form.multi_items() if not isinstance(value, str)}
        for file in parser._files_to_close_on_error:
            if id(file) not in held:
                file.close()
        return form

    async def discard(self) -> None:
        """Reads what is left of a body that is refused: else the client might not see why."""
        if "100-continue" in self._request.headers.get("expect", ""):
            return  # it waits for our word
        self._deadline = time.monotonic() + _LINGER
        self._seen = 0
        with contextlib.suppress(MultiPartException):
            while self._more:
                await self._next()

    async def gone(self) -> None:
        """Returns when the client has left; call it after `form`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> Message:
        """The next part of the body. Errors are such that the parser closes its files on them."""
        try:
            left = self._deadline - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError:
            self._error = Refused(
                408, f"the body was not complete after {self._max_seconds:g} s: send it faster"
            )
            raise MultiPartException("too slow") from None
        if message["type"] == "http.disconnect":
            self._more, self._error = False, Gone()
            raise MultiPartException("gone")
        self._seen += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._seen > self._max_bytes + _FIELDS:
            self._error = self._too_large()
            raise MultiPartException("too large")
        return message

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"the recording exceeds {self._max_bytes / 1e6:g} MB: send it in parts, or as FLAC,"
            " MP3 or Ogg",
            "file",
            "file_too_large",
        )


def _check_charset(kind: str) -> None:
    """Refuses a form, by its Content-Type, whose fields are in another charset than is usual."""
    charset = parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _CHARSETS:
        raise Refused(
            400, f"the form's charset is {charset[:40]!a}: send it in UTF-8", code="invalid_charset"
        )
