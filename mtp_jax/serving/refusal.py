"""Errors as the OpenAI API words them: one sentence, its kind, and the field to mend."""

from __future__ import annotations

from starlette.responses import JSONResponse

LONGEST_RETRY = 60  # s


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        message: one sentence: what is wrong and what to do.
        param: the field that is.
        code: for programs.
        retry_after: s after which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return JSONResponse(self.body, self.status, headers)


def stopped() -> Refused:
    """Nothing is decoded any more."""
    return Refused(503, "the service decodes nothing any more: its log says why; start it anew")
