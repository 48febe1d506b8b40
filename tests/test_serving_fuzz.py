"""A thousand damaged uploads to a running service: each is answered; none crashes, hangs or leaks.

python -m pytest -m slow tests/test_serving_fuzz.py
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import numpy as np
import pytest
import soundfile

from mtp_jax.data import corpus, grammar
from tests.models import tiny_workdir
from tests.test_transcription_fuzz import FORMATS, mutated

UPLOADS = int(os.environ.get("MTP_FUZZ_UPLOADS", "1000"))
URL = "/v1/audio/transcriptions"
FIELDS = {
    "model": ("tiny", "whisper-1", "x", ""),
    "response_format": ("json", "text", "srt", "vtt", "verbose_json", "doc", "\0"),
    "stream": ("true", "false", "x"),
    "strategy": ("verify", "ctc", "x"),
    "tau": ("0.5", "-1", "nan", "1e999"),
    "temperature": ("0", "9", "\udcff"),
    "include[]": ("logprobs", "blocks", "x"),
    "timestamp_granularities[]": ("word", "segment", "x"),
    "language": ("en", "é" * 99, ""),
    "unknown": ("x",),
}


def seeds() -> list[bytes]:
    text = next(itertools.islice(grammar.sentences("dev", 0), 1))
    wave = soundfile.read(io.BytesIO(corpus.utterance(text, 0, "dev", 0).flac), dtype="int16")[0]
    found = []
    for i, (kind, subtype) in enumerate(FORMATS):
        samples = wave if i % 3 else np.stack([wave] * 2, axis=1)
        out = io.BytesIO()
        rate = 48_000 if "OPUS" in subtype else 16_000
        soundfile.write(out, samples, rate, subtype, format=kind)
        found.append(out.getvalue())
    return found


def request(draw: np.random.Generator, files: list[bytes]) -> tuple[bytes, str]:
    """Body and content type: a damaged file, odd fields, sometimes a damaged form."""
    first, second = draw.integers(len(files), size=2)
    file = mutated(files[first], files[second], draw) if draw.random() < 0.9 else files[first]
    parts = [(b'name="file"; filename="\xff a\\".wav"', file)]
    for name in draw.permutation(list(FIELDS))[: draw.integers(3) if draw.random() < 0.5 else 0]:
        value = str(draw.choice(FIELDS[name])).encode("utf-8", "surrogateescape")
        parts.append((f'name="{name}"'.encode(), value))
    body = b"".join(
        b"--cut\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts
    )
    body, kind = body + b"--cut--\r\n", "multipart/form-data; boundary=cut"
    damage = draw.random()
    if damage < 0.1:
        body = mutated(body, file, draw)
    elif damage < 0.13:
        kind = str(
            draw.choice(["multipart/form-data", "text/plain", "multipart/form-data; boundary="])
        )
    return body, kind


def hang_up(address: str, body: bytes, kind: str) -> None:
    """Sends a part of a request, and leaves."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        connection.sendall(body[: len(body) // 2])


@pytest.mark.slow
def test_no_upload_crashes_hangs_or_leaks(tmp_path):
    model = tiny_workdir(tmp_path / "tiny")
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "mtp_jax.serve", f"--model={model}", "--port=0", "--queue=16"]
    flags = ["--batch_size=4", "--warm=verify,ctc", "--max_seconds=600", "--max_bytes=1000000"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*command, *flags],
            stderr=log,
            env=environment,
            cwd=pathlib.Path(__file__).parent.parent,
        ) as process,
    ):
        try:
            outcomes, memory = fuzz(process, tmp_path / "log")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
    print(outcomes)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said, said
    assert sum(outcomes.values()) == UPLOADS
    assert outcomes[200] > UPLOADS // 10
    assert outcomes[400] > UPLOADS // 10
    assert set(outcomes) <= {200, 400, 404, 413, 415, 0}
    early, late = (max(memory[UPLOADS * a // 8 : UPLOADS * b // 8]) for a, b in ((2, 4), (6, 8)))
    assert late - early < 50e6, (early, late)
    assert not list((tmp_path / "temporary").glob("mtp_jax-serve-*"))


def fuzz(process: subprocess.Popen, log: pathlib.Path) -> tuple[Counter, list[int]]:
    """Answers by status (0: the client left), and the memory of the service after each."""
    while " serves " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    address = log.read_text().split()[0]
    draw, files = np.random.default_rng(0), seeds()
    outcomes: Counter = Counter()
    memory = []
    proc = pathlib.Path("/proc") / str(process.pid)
    with httpx.Client(base_url=address, timeout=120) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.5)

        def one(item: tuple[bytes, str, bool]) -> int:
            body, kind, leaves = item
            if leaves:
                hang_up(address, body, kind)
                return 0
            response = client.post(URL, content=body, headers={"content-type": kind})
            if response.status_code != 200:
                message = response.json()["error"]["message"]
                assert "\n" not in message
                assert "/tmp" not in message
            elif response.headers["content-type"].startswith("text/event-stream"):
                *_, last, end = (part for part in response.text.split("\n\n") if part)
                assert end == "data: [DONE]"
                assert {"type", "error"} & json.loads(last[6:]).keys()
            memory.append(int((proc / "statm").read_text().split()[1]) * 4096)
            return response.status_code

        def requests():
            for i in range(UPLOADS):
                yield (*request(draw, files), i % 50 == 49)

        with ThreadPoolExecutor(6) as pool:
            outcomes.update(pool.map(one, requests()))
        deadline = time.monotonic() + 60
        while client.get("/health").json()["held"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(list((proc / "fd").iterdir())) < 100
        assert len(list((proc / "task").iterdir())) < 100
    memory += memory[-1:] * (UPLOADS - len(memory))
    return outcomes, memory
