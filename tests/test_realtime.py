"""Live captions over a WebSocket: the API's events, its real client, limits, and who goes away."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator

import numpy as np
import openai
import pytest
import soxr
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.app import Service, Settings
from mtp_jax.serving.realtime_events import HYPOTHESIS, LOGPROBS
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from tests.recordings import RATE
from tests.test_live import Sure, at_once
from tests.test_serving import URL
from tests.test_serving_page import served

PATH = "/v1/realtime"
ITEM = "conversation.item.input_audio_transcription"
BUFFER = "input_audio_buffer"


@pytest.fixture(scope="module")
def model(model) -> Sure:
    """One whose captions are shown."""
    return Sure.of(model)


@pytest.fixture(scope="module")
def service(model) -> Service:
    limits = {"max_seconds": 60.0, "live": 2, "idle_seconds": 600.0}
    return Service(model, Settings(models=("tiny", "whisper-1"), warm=(), **limits))


@pytest.fixture(scope="module")
def client(service) -> Iterator[TestClient]:
    with TestClient(service.app()) as client:
        yield client


@pytest.fixture(scope="module")
def said(waves) -> np.ndarray:
    pause = np.zeros(RATE, np.int16)
    return np.concatenate([waves[0], pause, waves[1], pause])


class Talk:
    """A session.

    Args:
        socket: of it.
        update: of its input; the audio has 16 kHz unless it says otherwise.
    """

    def __init__(self, socket, include=(), **update) -> None:
        self.socket = socket
        self.created = self.receive()
        heard = {"format": {"type": "audio/pcm", "rate": RATE}} | update
        session = {"type": "transcription", "audio": {"input": heard}, "include": [*include]}
        self.updated = self.ask({"type": "session.update", "session": session})

    def receive(self) -> dict:
        return json.loads(self.socket.receive_text())

    def ask(self, sent) -> dict:
        self.socket.send_text(sent if isinstance(sent, str) else json.dumps(sent))
        return self.receive()

    def send(self, kind: str, **fields) -> None:
        self.socket.send_text(json.dumps({"type": kind, **fields}))

    def append(self, samples: np.ndarray, size: int = 4000) -> None:
        for at in range(0, len(samples), size):
            piece = base64.b64encode(samples[at : at + size].tobytes()).decode()
            self.send(f"{BUFFER}.append", audio=piece)

    def until(self, kind: str, count: int = 1) -> list[dict]:
        """Events, up to so many of a kind."""
        found: list[dict] = []
        while sum(event["type"] == kind for event in found) < count:
            found.append(self.receive())
            assert found[-1]["type"] != "error", found[-1]
        return found


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["type"] == kind]


def test_a_session_says_what_the_stretches_say(client, model, said):
    expected = at_once(model, said)
    with client.websocket_connect(PATH) as socket:
        talk = Talk(socket, [HYPOTHESIS, LOGPROBS])
        assert (talk.created["type"], talk.updated["type"]) == (
            "session.created",
            "session.updated",
        )
        session = talk.updated["session"]
        assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}
        assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 800
        talk.append(said)
        events = talk.until(f"{ITEM}.completed", len(expected))
    done = of(events, f"{ITEM}.completed")
    assert [event["transcript"] for event in done] == expected
    items = [event["item_id"] for event in done]
    assert len(set(items)) == len(items)
    for kind in ("speech_started", "speech_stopped", "committed"):
        assert [event["item_id"] for event in of(events, f"{BUFFER}.{kind}")] == items
    before = [event["previous_item_id"] for event in of(events, f"{BUFFER}.committed")]
    assert before == [None, *items[:-1]]
    starts = [event["audio_start_ms"] for event in of(events, f"{BUFFER}.speech_started")]
    ends = [event["audio_end_ms"] for event in of(events, f"{BUFFER}.speech_stopped")]
    times = [t for pair in zip(starts, ends, strict=True) for t in pair]
    assert times == sorted(times)
    for event, start, end in zip(done, starts, ends, strict=True):
        assert event["usage"]["seconds"] == pytest.approx((end - start) / 1000, abs=0.002)
        shown = [e for e in events if e.get("item_id") == event["item_id"]]
        told = "".join(e["delta"] for e in of(shown, f"{ITEM}.delta"))
        if event["transcript"].startswith(told):  # else what stays is another text
            assert told == event["transcript"]
        assert all(token["logprob"] <= 0 for token in event["logprobs"])
        assert len(event["logprobs"]) >= len(event["transcript"].split())
    growing = of(events, f"{ITEM}.hypothesis")
    assert growing and all(event["decoder_calls"] > 0 for event in growing)
    calls = [e["decoder_calls"] for e in events if "decoder_calls" in e]
    assert calls == sorted(calls)
    assert len({event["event_id"] for event in events}) == len(events)


def test_only_what_is_asked_for_is_told(client, said):
    with client.websocket_connect(f"{PATH}?model=whisper-1") as socket:
        talk = Talk(socket)
        talk.append(said[: 3 * RATE])
        talk.send(f"{BUFFER}.commit")
        events = talk.until(f"{ITEM}.completed")
    assert not of(events, f"{ITEM}.hypothesis")
    assert not {"logprobs", "decoder_calls"} & events[-1].keys()


def test_a_client_may_say_where_items_end(client, said):
    """With no turn detection pauses end none; the last samples of a rate of its own are heard."""
    fast = soxr.resample(said[: 2 * RATE], RATE, 24_000)
    with client.websocket_connect(PATH) as socket:
        talk = Talk(socket, format={"type": "audio/pcm", "rate": 24_000}, turn_detection=None)
        assert talk.updated["session"]["audio"]["input"]["turn_detection"] is None
        talk.append(fast)
        talk.send(f"{BUFFER}.commit")
        first = talk.until(f"{ITEM}.completed")
        assert len(of(first, f"{BUFFER}.committed")) >= 1
        talk.append(np.zeros(24_000, np.int16))
        talk.send(f"{BUFFER}.commit")
        [committed, completed] = talk.until(f"{ITEM}.completed")
        assert committed["item_id"] == completed["item_id"] and completed["transcript"] == ""


def test_what_is_cleared_is_forgotten(client, said):
    with client.websocket_connect(PATH) as socket:
        talk = Talk(socket)
        talk.append(said[:RATE])
        talk.send(f"{BUFFER}.clear")
        talk.until(f"{BUFFER}.cleared")
        talk.append(np.zeros(RATE, np.int16))
        talk.send(f"{BUFFER}.commit")
        events = talk.until(f"{ITEM}.completed")
        assert events[-1]["transcript"] == ""


def append(audio) -> dict:
    return {"type": f"{BUFFER}.append", "audio": audio}


def update(**heard) -> dict:
    session = {"type": "transcription", "audio": {"input": heard}}
    return {"type": "session.update", "session": session}


WRONG = [
    ("no json", None, "is a JSON object"),
    ("[" * 100_000, None, "is a JSON object"),
    ("[]", "type", "with a type"),
    ('{"type": 1}', "type", "with a type"),
    ({"type": "response.create"}, "type", "'response.create' is unknown"),
    (append(None), "audio", "is missing"),
    (append("???"), "audio", "is no base64"),
    (append("AA=="), "audio", "half a sample"),
    (append(base64.b64encode(bytes(62 * RATE)).decode()), "audio", "samples at most"),
    ({"type": f"{BUFFER}.commit"}, None, "less than 100 ms"),
    ({"type": "session.update"}, "session", "is an object"),
    ({"type": "session.update", "session": {"type": "realtime"}}, "session.type", "does not talk"),
    (update(speed=2), "session.audio.input.speed", "no field 'speed'"),
    (update(format={"type": "audio/pcmu"}), "session.audio.input.format.type", "is audio/pcm"),
    (update(format={"rate": 1}), "session.audio.input.format.rate", "lies within"),
    (update(format=7), "session.audio.input.format.type", "audio/pcm"),
    (
        update(turn_detection={"type": "semantic_vad"}),
        "session.audio.input.turn_detection.type",
        "server_vad",
    ),
    (
        update(turn_detection={"type": "server_vad", "silence_duration_ms": "long"}),
        "session.audio.input.turn_detection.silence_duration_ms",
        "lies within",
    ),
    (
        update(transcription={"model": "gpt-4o"}),
        "session.audio.input.transcription.model",
        "this service has tiny, whisper-1",
    ),
    (update(transcription={"language": 3}), "session.audio.input.transcription.language", "text"),
    (update(noise_reduction={}), "session.audio.input.noise_reduction", "leave it out"),
    (
        {"type": "session.update", "session": {"type": "transcription", "include": ["all"]}},
        "session.include",
        "may hold",
    ),
]


def test_a_wrong_event_gets_an_error_and_the_session_goes_on(client, said, model):
    with client.websocket_connect(PATH) as socket:
        talk = Talk(socket)
        for sent, param, expected in WRONG:
            if isinstance(sent, dict):
                sent = sent | {"event_id": "mine"}
            found = talk.ask(sent)
            assert found["type"] == "error", (sent, found)
            error = found["error"]
            assert (error["param"], error["event_id"]) == (
                param,
                "mine" if isinstance(sent, dict) else None,
            ), error
            assert expected in error["message"] and "\n" not in error["message"]
            assert error["type"] == "invalid_request_error"
        talk.socket.send_bytes(b"\0\0")
        assert "is a JSON object" in talk.receive()["error"]["message"]
        talk.append(said[: 2 * RATE])
        talk.send(f"{BUFFER}.commit")
        assert talk.until(f"{ITEM}.completed")[-1]["usage"]["seconds"] > 0
        refused = talk.ask(update(transcription={"language": "de"}, turn_detection=None))
        assert "before the first audio" in refused["error"]["message"]


def held(client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("mtp_live_sessions ")).split()[1])


def test_a_prompt_that_the_model_cannot_take_is_refused(client, model, monkeypatch):
    def start_tokens(*unused: object) -> tuple[int, ...]:
        raise LanguageError("the prompt comes to 999 tokens: shorten it")

    with client.websocket_connect(PATH) as socket:
        talk = Talk(socket)
        with monkeypatch.context() as patch:
            patch.setattr(model, "start_tokens", start_tokens)
            session = {"type": "transcription"}
            answer = talk.ask({"type": "session.update", "session": session})
            assert answer["type"] == "error"
            assert "999 tokens: shorten" in answer["error"]["message"]
        assert talk.ask({"type": "session.update", "session": session})["type"] == "session.updated"


def test_places_are_few_and_who_goes_away_frees_one(client, service, said):
    with client.websocket_connect(PATH) as first, client.websocket_connect(PATH) as second:
        one, other = Talk(first), Talk(second)
        one.append(said)
        other.append(said[:RATE])
        assert held(client) == 2
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(PATH):
            pass
        assert refused.value.status_code == 503
        assert refused.value.json()["error"]["code"] == "queue_full"
        assert refused.value.headers["retry-after"]
    deadline = time.monotonic() + 60
    while held(client) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held(client) == 0
    assert not service.engine._held and not service.engine._jobs
    with client.websocket_connect(PATH) as socket:
        assert Talk(socket).created["type"] == "session.created"
    path = f"{PATH}?model=gpt-4o"
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(path):
        pass
    assert refused.value.status_code == 404


def test_a_session_has_an_end(model):
    limits = {"max_seconds": 2.0, "idle_seconds": 0.3}
    service = Service(model, Settings(models=("tiny",), warm=(), **limits))
    with TestClient(service.app()) as client:
        with client.websocket_connect(PATH) as socket:
            talk = Talk(socket)
            talk.append(np.zeros(3 * RATE, np.int16), size=RATE)
            assert talk.receive()["error"]["code"] == "audio_too_long"
            with pytest.raises(WebSocketDisconnect) as closed:
                talk.receive()
            assert closed.value.code == 1009
        with client.websocket_connect(PATH) as socket:
            talk = Talk(socket)
            assert talk.receive()["error"]["code"] == "session_idle"
            with pytest.raises(WebSocketDisconnect) as closed:
                talk.receive()
            assert closed.value.code == 1008
        with client.websocket_connect(PATH) as socket:
            talk = Talk(socket)
            talk.append(np.zeros(RATE, np.int16))
            service.engine.close()  # the service ends
            assert talk.receive()["error"]["type"] == "server_error"
            with pytest.raises(WebSocketDisconnect) as closed:
                talk.receive()
            assert closed.value.code == 1012
    with TestClient(Service(model, Settings(models=("tiny",), warm=(), live=0)).app()) as client:
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(PATH):
            pass
        assert refused.value.status_code == 404


KEY = "0123456789abcdef"


def test_a_key_and_an_origin_open_it(model):
    settings = Settings(
        models=("tiny",), warm=(), keys=ApiKeys([KEY]), origins=("https://app.example.org",)
    )
    secret = f"openai-insecure-api-key.{KEY}"
    encoded = f"mtp-jax-key.{base64.urlsafe_b64encode(KEY.encode()).decode().rstrip('=')}"
    with TestClient(Service(model, settings).app()) as client:
        bearer = {"authorization": f"Bearer {KEY}"}
        for headers, protocols in (
            (bearer, None),
            ({}, ["realtime", secret]),
            ({}, ["realtime", encoded]),
            (bearer | {"origin": "https://app.example.org"}, None),
            (bearer | {"origin": "http://testserver"}, None),
        ):
            with client.websocket_connect(PATH, protocols, headers=headers) as socket:
                assert json.loads(socket.receive_text())["type"] == "session.created"
                assert socket.accepted_subprotocol == ("realtime" if protocols else None)
        for headers, protocols, status in (
            ({}, None, 401),
            ({"authorization": "Bearer wrong"}, None, 401),
            ({}, ["realtime", f"{secret}0"], 401),
            ({}, ["realtime", f"{encoded}0"], 401),
            ({}, ["realtime", "mtp-jax-key.a"], 401),
            (bearer, ["realtime", secret], 401),  # two keys
            (bearer | {"origin": "https://evil.example"}, None, 403),
            (bearer | {"origin": "null"}, None, 403),
        ):
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(PATH, protocols, headers=headers),
            ):
                pass
            assert refused.value.status_code == status
            assert KEY not in refused.value.text


def test_sessions_and_recordings_share_the_batches(client, service, model, files, said):
    """Each gets the text of its own audio."""
    expected = at_once(model, said)
    alone = client.post(URL, files={"file": ("a.flac", files[3])}).json()["text"]
    with client.websocket_connect(PATH) as first, client.websocket_connect(PATH) as second:
        talks = [Talk(first), Talk(second)]
        for at in range(0, len(said), 8000):
            for talk in talks:
                talk.append(said[at : at + 8000], 8000)
        assert client.post(URL, files={"file": ("a.flac", files[3])}).json()["text"] == alone
        for talk in talks:
            events = talk.until(f"{ITEM}.completed", len(expected))
            texts = [event["transcript"] for event in of(events, f"{ITEM}.completed")]
            assert texts == expected
    # A batch of two rows and one of one may differ in the last bits; these texts do not.


def test_the_openai_package_talks_to_it(model, said):
    expected = at_once(model, said)

    async def talk(address: str) -> list:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY)
        found = []
        async with client.realtime.connect(model="tiny") as connection:
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24000},
                            "transcription": {"model": "tiny", "language": "en"},
                            "turn_detection": {"type": "server_vad"},
                        }
                    },
                }
            )
            fast = soxr.resample(said, RATE, 24_000)
            for at in range(0, len(fast), 2400):
                piece = base64.b64encode(fast[at : at + 2400].tobytes()).decode()
                await connection.input_audio_buffer.append(audio=piece)
            async for event in connection:
                found.append(event)
                if sum(e.type == f"{ITEM}.completed" for e in found) == len(expected):
                    break
        wrong = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="wrong")
        with pytest.raises(Exception, match="401"):
            await wrong.realtime.connect(model="tiny").enter()
        return found

    with served(model, ApiKeys([KEY]), "auto") as address:
        events = asyncio.run(talk(address))
    kinds = {event.type for event in events}
    assert {"session.created", "session.updated", f"{BUFFER}.committed"} <= kinds
    assert "error" not in kinds
    done = [event for event in events if event.type == f"{ITEM}.completed"]
    assert all(type(event).__name__.endswith("CompletedEvent") for event in done)
    assert all(isinstance(event.transcript, str) and event.usage.seconds > 0 for event in done)
