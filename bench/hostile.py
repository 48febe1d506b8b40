"""Requests to a transcription service as nobody should send them, and what each must be answered.

`bench.checked_request` sends one and says what is wrong with the answer; `bench.hostile_requests`
does so by the thousand.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import soundfile

from bench.checked_request import Request

URL = "/v1/audio/transcriptions"
RATE = 16_000

Draw = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Recording:
    """A file, and its text by strategy."""

    name: str
    content: bytes
    texts: Mapping[str, str]


# What requests are made of.


def disposition(**options: str | bytes) -> bytes:
    """The header of a part."""
    given = (
        b'%b="%b"' % (key.encode(), value.encode() if isinstance(value, str) else value)
        for key, value in options.items()
    )
    return b"Content-Disposition: form-data; " + b"; ".join(given)


def form(
    file: bytes | None,
    fields: Sequence[tuple[str, str | bytes]] = (),
    name: str | bytes = "talk.flac",
    more: Sequence[bytes] = (),
) -> bytes:
    """A body: the recording under that name, fields, and whole parts of any kind."""
    parts = list(more)
    for key, value in fields:
        content = value.encode() if isinstance(value, str) else value
        parts.append(disposition(name=key) + b"\r\n\r\n" + content)
    if file is not None:
        parts.append(disposition(name="file", filename=name) + b"\r\n\r\n" + file)
    return b"".join(b"--cut\r\n%b\r\n" % part for part in parts) + b"--cut--\r\n"


def head(
    length: int | str | None,
    kind: str = "multipart/form-data; boundary=cut",
    *more: str,
    target: str = f"POST {URL}",
) -> bytes:
    """The head of a request; `length` None leaves it out."""
    lines = [f"{target} HTTP/1.1", "Host: localhost", *more]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(body: bytes, size: int) -> bytes:
    """A body in the chunks of HTTP."""
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def good(recordings: Sequence[Recording], strategies: Sequence[str], draw: Draw) -> Request:
    """A request that must be transcribed."""
    recording = recordings[draw.integers(len(recordings))]
    strategy = str(draw.choice(strategies))
    kind = str(draw.choice(["json", "json", "text", "srt", "vtt", "verbose_json", "stream"]))
    fields = [("strategy", strategy), ("model", "whisper-1")]
    fields += [("stream", "true")] if kind == "stream" else [("response_format", kind)]
    body = form(recording.content, fields, recording.name)
    text = recording.texts[strategy]
    how = draw.random()
    parts: tuple[tuple[float, bytes], ...]
    first, count = False, 1
    if how < 0.3:
        first = True
        parts = ((0, head(len(body), "multipart/form-data; boundary=cut", "Expect: 100-continue")),)
        parts += ((0, body),)
    elif how < 0.5:
        size = int(draw.integers(100, 20_000))
        whole = head(None, "multipart/form-data; boundary=cut", "Transfer-Encoding: chunked")
        parts = ((0, whole + chunked(body, size)),)
    elif how < 0.6:
        parts, count = ((0, (head(len(body)) + body) * 2),), 2
    elif how < 0.7:
        at = int(draw.integers(len(body)))
        parts = ((0, head(len(body)) + body[:at]), (0.05, body[at:]))
    else:
        parts = ((0, head(len(body)) + body),)
    slowly = bool(draw.random() < 0.02)
    return Request(
        *("good", parts, frozenset({200}), (text,) * count, kind),
        asks_first=first,
        reads_slowly=slowly,
    )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of the service that is tried.

    Attributes:
        max_bytes, max_seconds: of a recording.
        upload_seconds: for a body to arrive; `head_seconds`: for the head of a request.
    """

    max_bytes: int
    max_seconds: float
    upload_seconds: float
    head_seconds: float


Kind = Callable[[Sequence[Recording], Limits, Draw], Request]
_REFUSED = frozenset({400})
_ANY = frozenset({200, 400, 413})


def _whole(kind: str, body: bytes, statuses: frozenset[int], *texts: str) -> Request:
    return Request(kind, ((0, head(len(body)) + body),), statuses, texts)


def _recording(recordings: Sequence[Recording], draw: Draw) -> Recording:
    return recordings[draw.integers(len(recordings))]


def _cut_off(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """The client leaves anywhere, in the head or in the body or once all is sent."""
    body = form(_recording(recordings, draw).content)
    whole = head(len(body)) + body
    at = int(draw.integers(1, len(whole) + 1))
    return Request("cut off", ((0, whole[:at]),), frozenset({0}), leaves=True)


def _cut_form(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """As many bytes as are announced, but a form that does not end."""
    body = form(_recording(recordings, draw).content)
    return _whole("cut form", body[: draw.integers(len(body) - 8)], _REFUSED)


def _wrong_length(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    body = form(_recording(recordings, draw).content)
    form_type = "multipart/form-data; boundary=cut"
    statuses, pause = _REFUSED, 0.0
    way = draw.integers(6)
    if way == 0:  # too short: the rest is no request
        parts = ((pause, head(int(draw.integers(len(body) - 8))) + body),)
    elif way == 1:  # too long
        parts = ((pause, head(len(body) + int(draw.integers(1, 999))) + body),)
        statuses = frozenset({408})
    elif way == 2:
        odd = str(draw.choice(["-1", "1e3", "0x10", "9" * 30, " ", "12, 13", "\xb2"]))
        parts = ((pause, head(odd) + body),)
        statuses = frozenset({400, 413})
    elif way == 3:
        parts = ((pause, head(len(body), form_type, "Content-Length: 7") + body),)
    elif way == 4:
        chunks = chunked(body, 1000)
        broken = chunks.replace(b"3e8\r\n", draw.choice([b"-1\r\n", b"zz\r\n", b"3e9\r\n"]), 1)
        statuses = frozenset({400, 408})
        parts = ((pause, head(None, form_type, "Transfer-Encoding: chunked") + broken),)
    else:
        parts = ((pause, head(None, form_type, "Transfer-Encoding: gzip") + body),)
        statuses = frozenset({400, 501})
    return Request("wrong length", parts, statuses)


def _slow_body(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    body = form(_recording(recordings, draw).content)
    pause = limits.upload_seconds / 4
    pieces = tuple((pause, body[i : i + 7]) for i in range(0, 70, 7))
    return Request("slow body", ((0, head(len(body))), *pieces), frozenset({408}))


def _slow_head(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    whole = head(10)
    pause = limits.head_seconds / 4
    pieces = tuple((pause, whole[i : i + 3]) for i in range(0, 30, 3))
    return Request("slow head", pieces, frozenset({408}))


def _idle(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """A connection with nothing in it."""
    return Request("idle", ((0, b""),), frozenset({0}))


def _wrong_type(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    recording = _recording(recordings, draw)
    body, other = form(recording.content), frozenset({415})
    kinds = {
        "application/json": other,
        "application/x-www-form-urlencoded": other,
        "audio/flac": other,
        "": other,
        "multipart/mixed; boundary=cut": other,
        "multipart/form-data": _REFUSED,
        "multipart/form-data; boundary=": _REFUSED,
        f"multipart/form-data; boundary={'x' * 5000}": _REFUSED,
        "multipart/form-data; boundary=\xe9": _REFUSED,
        "multipart/form-data; boundary=other": _REFUSED,
    }
    charsets = (
        "idna",
        "punycode",
        "utf-7",
        "utf-16",
        "undefined",
        "unicode_escape",
        "no\xe9",
        "..",
    )
    kinds |= {f"multipart/form-data; boundary=cut; charset={c}": _REFUSED for c in charsets}
    kind = str(draw.choice(list(kinds)))
    if "charset" in kind:
        odd = draw.choice([rb"\ud800", b"+2AA-", b"\xd8\x00", b"xn--\xff"])
        body = form(b"no audio", [("prompt", odd)], odd)
    statuses = kinds[kind]
    if draw.random() < 0.2 and statuses is other:
        body = json.dumps({"file": "talk.flac", "model": "whisper-1"}).encode()
    return Request("wrong type", ((0, head(len(body), kind) + body),), statuses)


def _huge(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    file = _recording(recordings, draw).content
    way = draw.integers(8)
    statuses = _REFUSED
    if way == 0:
        body = form(file, [("prompt", "x" * 70_000)])
    elif way == 1:
        body = form(file, [("prompt", "x")] * 1000)
    elif way == 2:
        body = form(file, more=[b"X-Header: " + b"x" * 100_000 + b"\r\n\r\nx"])
    elif way == 3:
        body = form(file, more=[b"\r\n".join([b"X: x"] * 5000) + b"\r\n\r\nx"])
    elif way == 4:
        body, statuses = form(bytes(limits.max_bytes + 1)), frozenset({413})
    elif way == 5:  # the length is not told
        kind = "multipart/form-data; boundary=cut"
        begin = head(None, kind, "Transfer-Encoding: chunked")
        whole = chunked(form(bytes(limits.max_bytes + 70_000)), 50_000)
        return Request("huge", ((0, begin + whole),), frozenset({413}))
    elif way == 6:
        begin = head(0, "x", "X-Long: " + "x" * 200_000)
        return Request("huge", ((0, begin),), frozenset({400, 431}))
    else:
        body = form(file, [(f"field{i}", "x") for i in range(60)])
    return _whole("huge", body, statuses)


def _nested(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    inner = form(_recording(recordings, draw).content)
    for _ in range(int(draw.integers(1, 30))):
        inner = form(inner)
    way = draw.integers(4)
    if way == 0:
        body = form(inner)
    elif way == 1:
        mixed = disposition(name="file") + b"\r\nContent-Type: multipart/mixed; boundary=inner"
        body = form(None, more=[mixed + b"\r\n\r\n--inner\r\n\r\n" + inner + b"\r\n--inner--"])
    elif way == 2:
        names = ("file[]", "file[file]", "include[0][0]", "__proto__", "file.name")
        body = form(_recording(recordings, draw).content, [(str(draw.choice(names)), "x")])
    else:
        body = form(
            _recording(recordings, draw).content, more=[disposition(name="file", filename="x")]
        )
    return _whole("nested", body, _REFUSED)


def _hours(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """Few bytes that unpack to more than is taken; the header tells so, or nothing does."""
    kinds = ("FLAC", "FLAC without a length", "OGG", "MP3")
    content = _long_file(kinds[draw.integers(len(kinds))], limits.max_seconds)
    return _whole("hours", form(content), frozenset({413}))


@functools.cache
def _long_file(kind: str, seconds: float) -> bytes:
    """Silence: as long as fits into few bytes, and many times as long as is taken."""
    out = io.BytesIO()
    factor = 100 if kind.startswith("FLAC") else 3
    with soundfile.SoundFile(out, "w", 16_000, 1, format=kind.split()[0]) as file:
        block = np.zeros(16_000 * 60, np.int16)
        for _ in range(round(seconds * factor / 60) + 1):
            file.write(block)
    content = bytearray(out.getvalue())
    if kind.endswith("length"):  # STREAMINFO: the lower 36 bits of bytes 18..25
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    return bytes(content)


def _names(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    names = (
        *("../../etc/passwd", "/etc/passwd", "C:\\\\autoexec.bat", "/dev/stdin", "~/.ssh/id_rsa"),
        *("a\0b.wav", "\x1b[31mred\x1b[0m.wav", "bell\a.wav", "\u202egnp.wav", "x" * 4000),
        *("a\tb\vc.wav", "\u2028.wav", "\x7f\x80\x9b.wav", " ", ".", "%00%2e%2e%2f.wav", "-rf"),
        *("file:///etc/passwd", "http://127.0.0.1:1/x", "concat:/etc/passwd", "|id", "$(id)"),
        *("\ud800.wav", 'a\\\\\\".wav', "😀" * 300),
    )
    name = names[draw.integers(len(names))].encode("utf-8", "surrogatepass")
    if draw.random() < 0.5:
        return _whole("names", form(b"no audio at all", name=name), _REFUSED)
    recording = _recording(recordings, draw)
    fields = [("strategy", "greedy")]
    return _whole(
        "names", form(recording.content, fields, name), frozenset({200}), recording.texts["greedy"]
    )


def _values(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    cases = (
        *(("response_format", v) for v in ("doc", "\0", "JSON", "x" * 9000)),
        *(("stream", v) for v in ("x", "2", "TRUE\n")),
        *(("strategy", v) for v in ("x", "../verify", "\x1b[31m")),
        *(("tau", v) for v in ("-1", "nan", "1e999", "0", "٠٫٥x", "0x1", "9" * 5000)),
        *(("temperature", v) for v in ("9", "inf", "-0.1", "warm")),
        *(("include[]", v) for v in ("x", "logprobs,blocks", "\u202e")),
        *(("timestamp_granularities[]", v) for v in ("word", "x")),  # not of response_format=json
        *(("language", v) for v in ("\u00e9" * 99, "<b>", "e", "en-" + "x" * 99)),
        *(("unknown", v) for v in ("x", "")),
        *(("\x1b[31m", "x"), ("a\nb", "x"), ("", "x"), ("x" * 300, "x")),
        ("model", "../../etc/passwd"),
        ("model", "\x1b[31m\x07"),
    )
    name, value = cases[draw.integers(len(cases))]
    body = form(_recording(recordings, draw).content, [(name, value)])
    return _whole("values", body, frozenset({404}) if name == "model" else _REFUSED)


def _no_requests(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """Other methods, paths and protocols."""
    targets = {
        f"GET {URL}": 405,
        f"DELETE {URL}": 405,
        "POST /v1/audio/nothing": 404,
        "POST /v1/audio/translations": 404,
        "GET /../../etc/passwd": 404,
        "GET /page/%2e%2e/%2e%2e/serve.py": 404,
        "GET //etc/passwd": 404,
        "GET /v1/models/" + "x" * 3000: 404,
        "GET /v1/models/%1b%5b31m%0a%00": 404,
        "POST /health": 405,
        "GET /%ff%fe": 404,
    }
    raw = (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), b"GARBAGE\r\n\r\n")
    raw += (
        b"GET / HTTP/x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 50,
    )
    way = int(draw.integers(len(targets) + len(raw)))
    if way >= len(targets):
        sent = raw[way - len(targets)]
        statuses = frozenset({505}) if sent.startswith(b"PRI") else _REFUSED
        return Request("no request", ((0, sent),), statuses)
    target, status = list(targets.items())[way]
    body = b"x" * 1000 if target.startswith("POST") else b""
    whole = head(len(body), "text/plain", target=target) + body
    return Request("no request", ((0, whole),), frozenset({status}))


def _damaged(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """Bytes of a good file changed, cut or repeated."""
    content = bytearray(_recording(recordings, draw).content)
    for _ in range(int(draw.integers(1, 5))):
        at = int(draw.integers(len(content)))
        way = draw.integers(4)
        if way == 0:
            content[at : at + 1] = draw.bytes(1)
        elif way == 1:
            content[int(draw.integers(40)) :][:4] = draw.bytes(4)
            content[at % 60 : at % 60 + 4] = draw.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]
            )
        elif way == 2:
            del content[max(at, 1) :]
        else:
            content[at:at] = content[: draw.integers(1, 3000)]
    return _whole("damaged", form(bytes(content)), _ANY)


KINDS: tuple[Kind, ...] = (
    *(
        _cut_off,
        _cut_form,
        _wrong_length,
        _slow_body,
        _slow_head,
        _idle,
        _wrong_type,
        _huge,
        _nested,
    ),
    *(_hours, _names, _values, _no_requests, _damaged),
)


def hostile(recordings: Sequence[Recording], limits: Limits, draw: Draw) -> Request:
    """One of the others."""
    return KINDS[draw.integers(len(KINDS))](recordings, limits, draw)
