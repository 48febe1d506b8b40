"""Every kind of hostile request, beside good ones: each is answered as it should be.

The short form of `bench.hostile_requests`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench import checked_request, hostile
from mtp_jax.serving.app import Service, Settings
from tests.http_service import listening

LIMITS = hostile.Limits(max_bytes=300_000, max_seconds=10.0, upload_seconds=1.0, head_seconds=1.0)
STRATEGIES = ("verify", "greedy")
EACH = 8  # requests of a kind
GOOD = 60


@pytest.fixture(scope="module")
def requests(model, waves, files) -> list[checked_request.Request]:
    """In an order that is drawn."""
    texts = [model.transcribe(wave, rate=hostile.RATE).text for wave in waves]
    spoken = [
        hostile.Recording(f"talk {i}.flac", file, dict.fromkeys(STRATEGIES, text))
        for i, (file, text) in enumerate(zip(files, texts, strict=False))
    ]
    draw = np.random.default_rng(0)
    made = [kind(spoken, LIMITS, draw) for kind in hostile.KINDS for _ in range(EACH)]
    made += [hostile.good(spoken, STRATEGIES, draw) for _ in range(GOOD)]
    return [made[i] for i in draw.permutation(len(made))]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_request_has_its_answer(model, requests):
    settings = Settings(
        models=("tiny", "whisper-1"),
        warm=STRATEGIES,
        queue=len(requests),
        max_bytes=LIMITS.max_bytes,
        max_seconds=LIMITS.max_seconds,
        upload_seconds=LIMITS.upload_seconds,
    )
    service = Service(model, settings)
    with (
        listening(service.app(), LIMITS.head_seconds) as address,
        ThreadPoolExecutor(16) as pool,
    ):
        until(lambda: service.engine.ready)
        outcomes = list(pool.map(lambda request: checked_request.send(address, request), requests))
        until(lambda: not service.held)
    pairs = zip(requests, outcomes, strict=True)
    wrong = [(r.kind, o) for r, o in pairs if o.fault or o.again]
    assert not wrong


def test_a_wrong_answer_is_seen():
    """What the bench counts as a fault is one: it would not pass over it."""
    request = checked_request.Request("x", ((0, b""),), frozenset({400}), ("said",))
    answer = checked_request._Answer
    cases = {
        "instead of": answer(200, "application/json", b'{"text": "other"}'),
        "without an end": answer(200, "text/event-stream", b'data: {"text": ""}\n\n'),
        "no sentence": answer(400, "text/plain", b"two\nlines"),
        "no error of the API": answer(400, "application/json", b"{}"),
        "status 200": answer(200, "application/json", b'{"text": "said"}'),
        "status 500": answer(500, "text/plain", b"it failed: see the log"),
    }
    for said, wrong in cases.items():
        assert said in checked_request._checked(request, [wrong]).fault
