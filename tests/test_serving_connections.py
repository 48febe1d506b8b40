"""Connections of the service end, whatever the client does not do, and say why where they can."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette

from mtp_jax.serving.guard import guards
from mtp_jax.serving.metrics import Metrics
from tests.http_service import listening

SECONDS = 0.5
LARGE = 50_000_000  # bytes; more than the kernel keeps for a client


class App:
    """Answers with the length of the body; ``/large`` with more than fits on the way."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        size, message = 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size += len(message.get("body", b""))
        body = bytes(LARGE) if scope["path"] == "/large" else str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for i in range(0, len(body), 100_000):
            more = i + 100_000 < len(body)
            await send(
                {"type": "http.response.body", "body": body[i : i + 100_000], "more_body": more}
            )
        self.ended.set()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def address(app) -> Iterator[tuple[str, int]]:
    with listening(app, SECONDS, lifespan="off") as where:
        yield where


def until_closed(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def test_a_connection_with_nothing_in_it_is_closed(address):
    with socket.create_connection(address, 60) as connection:
        assert until_closed(connection) == b""


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_head_that_comes_byte_by_byte_is_refused_in_a_sentence(address, before):
    with socket.create_connection(address, 60) as connection:
        connection.sendall(before + b"GET / HT")
        for _ in range(100):
            time.sleep(SECONDS / 10)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"x")
            connection.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                if b"408" in connection.recv(65536, socket.MSG_PEEK):
                    break
        connection.settimeout(60)
        found = until_closed(connection)
    if before:
        assert found.startswith(b"HTTP/1.1 200")
        found = found[found.index(b"HTTP/1.1 408") :]
    status, said = refusal(found)
    assert status == 408
    assert said == "the head of the request was not complete after 0.5 s: send it faster"


@pytest.mark.parametrize(
    "sent",
    [
        b"no HTTP\r\n\r\n" + bytes(300_000),
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + bytes(300_000),
    ],
)
def test_what_is_no_http_is_told_so_though_much_of_it_is_not_read(address, sent):
    with socket.create_connection(address, 60) as connection:
        connection.sendall(sent)
        status, said = refusal(until_closed(connection))
    assert status == 400
    assert "no well-formed HTTP" in said


def test_an_answer_that_nobody_takes_is_given_up(address, app):
    with socket.create_connection(address, 60) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert app.ended.wait(60)
        with contextlib.suppress(ConnectionResetError):
            assert len(until_closed(connection)) < LARGE


def test_a_slow_client_that_takes_its_answer_gets_all_of_it(address):
    """As does one that sends its request in time, and one that asks twice."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as client:
        for _ in range(2):
            client.request("POST", "/", bytes(200_000))
            assert client.getresponse().read() == b"200000"
            time.sleep(SECONDS * 1.5)
        client.request("GET", "/large")
        response, size = client.getresponse(), 0
        while piece := response.read(5_000_000):
            size += len(piece)
            time.sleep(SECONDS / 5)
    assert size == LARGE


def test_what_begins_http_2_is_told_the_version() -> None:
    guarded = Starlette(middleware=guards((), None, Metrics(), LARGE))
    with (
        listening(guarded, SECONDS) as address,
        socket.create_connection(address, 60) as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        status, sentence = refusal(until_closed(connection))
    assert status == 505
    assert sentence == "this service speaks HTTP/1.1: send the request in that version"
