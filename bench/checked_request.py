"""Sends one request to a transcription service, and says what is wrong with the answer.

A request is what goes over the wire, with pauses, and what may come back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import json
import socket
import time
from collections.abc import Sequence

TIMEOUT = 120.0  # s that a client waits; a service that needs them hangs
_LONGEST = 1000  # characters of a sentence
_STOPPED = "decodes nothing any more"  # of the service whose thread that decodes ended


@dataclasses.dataclass(frozen=True)
class Request:
    """One request, or what pretends to be one.

    Attributes:
        kind: for the table.
        parts: bytes to send, and seconds to wait before each.
        statuses: of HTTP, that the answer may have; 0 stands for no answer.
        texts: that a good answer may say, in the order of the answers; a good request has one.
        format: of the answers.
        leaves: the client closes the connection once it has sent all, and waits for no answer.
        asks_first: the body is sent once the service has said 100 Continue.
        reads_slowly: the answer is taken in small pieces.
    """

    kind: str
    parts: tuple[tuple[float, bytes], ...]
    statuses: frozenset[int]
    texts: tuple[str, ...] = ()
    format: str = "json"
    leaves: bool = False
    asks_first: bool = False
    reads_slowly: bool = False

    @property
    def is_good(self) -> bool:
        """Whether it must be transcribed."""
        return bool(self.texts)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        status: of the first answer; 0 if there was none.
        fault: what is wrong with it; empty if nothing is.
        again: the service was full, ended or ended before it took the request: it is to be sent
            once more.
        stopped: the service says that it decodes nothing any more.
    """

    status: int
    fault: str = ""
    again: bool = False
    stopped: bool = False


def send(address: tuple[str, int], request: Request) -> Outcome:
    """Sends a request and checks what comes back."""
    taken = False  # the service said that it takes it
    try:
        with contextlib.closing(socket.create_connection(address, TIMEOUT)) as connection:
            if request.reads_slowly:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for place, (pause, content) in enumerate(request.parts):
                time.sleep(pause)
                if request.asks_first and place == 1:
                    first = connection.recv(4096)
                    if not first.startswith(b"HTTP/1.1 100"):
                        return _checked(request, [_parsed(first, connection)])
                    taken = True
                try:
                    connection.sendall(content)
                except (BrokenPipeError, ConnectionResetError):  # refused: why may be there to read
                    break
            if request.leaves:
                return Outcome(0)
            answers = [_answer(connection, request) for _ in range(max(1, len(request.texts)))]
            return _checked(request, answers)
    except TimeoutError:
        return Outcome(0, f"no answer after {TIMEOUT:g} s")
    except (OSError, http.client.HTTPException) as error:
        if 0 in request.statuses:
            return Outcome(0)
        if taken or isinstance(error, http.client.IncompleteRead):
            return Outcome(0, f"taken and lost: {error!r}")
        return Outcome(0, again=True)


@dataclasses.dataclass(frozen=True)
class _Answer:
    status: int
    kind: str
    body: bytes


def _answer(connection: socket.socket, request: Request) -> _Answer:
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    if request.reads_slowly:
        found = []
        while piece := response.read(512):
            found.append(piece)
            time.sleep(0.01)
        body = b"".join(found)
    else:
        body = response.read()
    return _Answer(response.status, response.headers.get("content-type", ""), body)


def _parsed(first: bytes, connection: socket.socket) -> _Answer:
    """An answer whose first bytes were read already."""
    while b"\r\n\r\n" not in first:
        more = connection.recv(4096)
        if not more:
            raise ConnectionResetError
        first += more
    head, _, body = first.partition(b"\r\n\r\n")
    headers = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n"))
    while len(body) < int(headers.get("content-length", 0)):
        more = connection.recv(4096)
        if not more:
            raise ConnectionResetError
        body += more
    return _Answer(int(head.split()[1]), headers.get("content-type", ""), body)


def _checked(request: Request, answers: Sequence[_Answer]) -> Outcome:
    status = answers[0].status
    for place, answer in enumerate(answers):
        if answer.status == 200:
            expected = request.texts[place] if request.texts else None
            fault = _wrong_text(answer, request.format, expected)
        else:
            fault = _wrong_sentence(answer)
            if not fault and answer.status == 503:
                return Outcome(503, again=True, stopped=_STOPPED.encode() in answer.body)
        if not fault and answer.status not in request.statuses:
            fault = f"status {answer.status}: {answer.body[:200]!r}"
        if fault:
            return Outcome(status, fault)
    return Outcome(status)


def _wrong_text(answer: _Answer, kind: str, expected: str | None) -> str:
    """What is wrong with a transcript; empty if nothing is."""
    body = answer.body.decode()
    if answer.kind.startswith("text/event-stream"):
        *data, last = (part.removeprefix("data: ") for part in body.split("\n\n") if part)
        if last != "[DONE]":
            return f"a stream without an end: {body[-200:]!r}"
        events = [json.loads(item) for item in data]
        text = events[-1].get("text")
        if "error" in events[-1]:
            return f"a stream that ends with {events[-1]}" if expected is not None else ""
        deltas = "".join(e["delta"] for e in events if e["type"] == "transcript.text.delta")
        if deltas != text:
            return f"a stream of {deltas!r} that ends with {text!r}"
    elif answer.kind.startswith("application/json"):
        text = json.loads(body)["text"]
    elif kind == "text":
        text = body.removesuffix("\n")
    else:  # subtitles: lines of text between numbers and times
        lines = [line for line in body.split("\n") if line and line != "WEBVTT"]
        text = " ".join(line for line in lines if not line.isdigit() and "-->" not in line)
    if expected is None or text == expected:
        return ""
    return f"{text!r} instead of {expected!r}"


def _wrong_sentence(answer: _Answer) -> str:
    """What is wrong with a refusal; empty if it is one sentence."""
    try:
        if answer.kind.startswith("application/json"):
            said = json.loads(answer.body)["error"]["message"]
        else:
            said = answer.body.decode()
    except (ValueError, KeyError, TypeError):
        return f"no error of the API: {answer.status} {answer.body[:200]!r}"
    bad = [c for c in said if not c.isprintable()]
    if not said.strip() or bad or len(said) > _LONGEST or "/tmp" in said or "Traceback" in said:
        return f"no sentence: {answer.status} {said[:300]!r}"
    return ""
