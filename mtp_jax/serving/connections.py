"""HTTP connections that end: no client holds one by sending no request or by taking no answer.

uvicorn bounds the time between two requests, and no other: a head that comes byte by byte, or an
answer that is never read, would keep its connection, and a service from ending, for ever.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mtp_jax.serving.refusal import Refused

HEAD_SECONDS = 20.0  # for the head of a request to arrive, at most
_LINGER = 5.0  # s that the rest of a request is read which was refused: else the reason is lost


class Connection(H11Protocol):
    """uvicorn's, with bounds; `bounded` makes a class of it that has those of a service.

    Attributes:
        head_seconds: for the head of a request to arrive, from the first byte of the connection or
            of the request.
        stall_seconds: that a client may leave an answer unread which is ready.
    """

    head_seconds = HEAD_SECONDS
    stall_seconds = 300.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._any_data = self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._arm("head", self.head_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        self._any_data = True
        if self._refused:
            return
        super().data_received(data)
        if self._is_served():
            self._disarm("head")
            self._disarm("answer")
        elif not self.transport.is_closing():
            self._arm("head", self.head_seconds, self._head_is_late)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._disarm("head")
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_served() and self.transport.get_write_buffer_size():
            self._arm("answer", self.stall_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm("answer", self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._disarm("answer")

    def shutdown(self) -> None:
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._disarm(name)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, or too long a head."""
        del msg  # uvicorn's, which names no remedy
        self._refuse(400, "the request is no well-formed HTTP, or its head is too long: mend it")

    def _is_served(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _head_is_late(self) -> None:
        if self._any_data:
            said = f"the head of the request was not complete after {self.head_seconds:g} s"
            self._refuse(408, f"{said}: send it faster")
        else:
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        """Answers, and reads on for a moment: bytes that nobody reads would cut the answer off."""
        self._refused = True
        if self._is_served():
            self.cycle.disconnected = True  # nobody will answer what it belongs to
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps(Refused(status, sentence).body).encode()
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        headers += [("Content-Length", str(len(body)))]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._arm("rest", _LINGER, self.transport.abort)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _arm(self, name: str, seconds: float, act: Any) -> None:
        """Unless it is: the time of the first event counts."""
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, self._ring, name, act)

    def _ring(self, name: str, act: Any) -> None:
        self._timers.pop(name, None)
        act()

    def _disarm(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()


def bounded(upload_seconds: float) -> type[Connection]:
    """Connections of a service whose requests have so many seconds to arrive.

    A client may leave an answer unread as long.
    """

    class Bounded(Connection):
        head_seconds = min(HEAD_SECONDS, upload_seconds)
        stall_seconds = upload_seconds

    return Bounded
