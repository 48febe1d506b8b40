"""The service, in-process and as a command: answers, batches, limits, shutdown, a real client."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import threading
import time
from collections.abc import Iterator

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.serving.app import Service, Settings
from mtp_jax.serving.engine import Engine
from mtp_jax.serving.job import Job
from mtp_jax.serving.metrics import Metrics
from mtp_jax.tokenizer import TokenizerError
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.formats import formatted
from mtp_jax.transcription.results import Segment, Transcript, Word
from tests.recordings import RATE, flac

URL = "/v1/audio/transcriptions"
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def service(model) -> Service:
    settings = Settings(
        models=("tiny", "whisper-1"), max_seconds=60.0, max_bytes=2_000_000, queue=4, warm=()
    )
    return Service(model, settings)


@pytest.fixture(scope="module")
def client(service) -> Iterator[TestClient]:
    with TestClient(service.app()) as client:
        yield client


def post(client, file: bytes, name: str = "talk.flac", **fields) -> httpx.Response:
    return client.post(URL, files={"file": (name, file)}, data=fields)


def in_parts(file: bytes) -> tuple[dict[str, str], Iterator[bytes]]:
    """Headers and body of a request that does not say how long it is."""
    head = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n'
    body = head + file + b"\r\n--cut--\r\n"
    parts = (body[i : i + 1000] for i in range(0, len(body), 1000))
    return {"Content-Type": "multipart/form-data; boundary=cut"}, parts


def test_an_upload_of_unknown_length_is_read_up_to_the_limit(model, files):
    """Too large or not is told by what arrives, whatever the parser of forms says of it."""
    service = Service(model, Settings(models=("tiny",), max_bytes=len(files[0]), warm=()))
    with TestClient(service.app()) as client:
        headers, body = in_parts(files[0])
        done = client.post(URL, headers=headers, content=body)
        assert done.status_code == 200, done.text
        assert done.json()["text"] == post(client, files[0]).json()["text"]
        headers, body = in_parts(files[0] + bytes(100_000))
        refused = client.post(URL, headers=headers, content=body)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "file_too_large"


def test_every_format_says_what_the_model_says(client, model, recordings, files):
    expected = model.transcribe(recordings[3], rate=RATE)
    plain = post(client, files[3], model="whisper-1").json()
    seconds = pytest.approx(len(recordings[3]) / RATE, abs=1e-3)
    assert plain["text"] == expected.text
    assert plain["usage"] == {"type": "duration", "seconds": seconds}
    assert post(client, files[3], response_format="text").text == f"{expected.text}\n"
    for kind in ("srt", "vtt"):
        assert post(client, files[3], response_format=kind).text == formatted(expected, kind)
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    verbose = post(client, files[3], **fields, language="de").json()
    assert verbose["text"] == expected.text
    assert verbose["language"] == "english"  # the model's, whatever was asked for
    assert verbose["decoder_calls"] == expected.decoder_calls
    assert [word["word"] for word in verbose["words"]] == [word.text for word in expected.words]
    starts = [word["start"] for word in verbose["words"]]
    np.testing.assert_allclose(starts, [word.start for word in expected.words], atol=1e-3)
    said = [segment for segment in expected.segments if segment.words]
    assert [s["tokens"] for s in verbose["segments"]] == [[t.id for t in s.tokens] for s in said]
    alone = post(client, files[0], response_format="verbose_json").json()
    assert "words" not in alone
    logprobs = post(client, files[0], **{"include[]": "logprobs"}).json()["logprobs"]
    assert "".join(token["token"] for token in logprobs).strip() == alone["text"]


def test_strategies_are_those_of_the_model(client, model, recordings, files):
    for fields in ({"strategy": "ctc"}, {"strategy": "threshold", "tau": "0.4"}):
        chosen = model.strategy(fields["strategy"], float(fields.get("tau", 0)) or None)
        expected = model.transcribe(recordings[0], rate=RATE, strategy=chosen)
        found = post(client, files[0], response_format="verbose_json", **fields).json()
        assert (found["text"], found["decoder_calls"]) == (expected.text, expected.decoder_calls)
        assert found["strategy"] == fields["strategy"]


def stream(client, file: bytes, **fields) -> list[dict]:
    response = post(client, file, stream="true", **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, last = (line[6:] for line in response.text.split("\n\n") if line)
    assert last == "[DONE]"
    return [json.loads(item) for item in data]


def test_a_stream_adds_up_to_the_transcript_block_by_block(client, model, recordings, files):
    expected = model.transcribe(recordings[3], rate=RATE)
    *deltas, done = stream(client, files[3], **{"include[]": "blocks"})
    assert "".join(event["delta"] for event in deltas) == expected.text == done["text"]
    blocks = [block for event in deltas for block in event["blocks"]]
    texts = [[token["text"] for token in block["tokens"]] for block in blocks]
    assert texts == [[token.text for token in block] for block in expected.blocks]
    assert done["tokens"] == len(expected.tokens) == sum(map(len, texts))
    assert done["decoder_calls"] == expected.decoder_calls
    words = [word["word"] for event in deltas for word in event["words"]]
    assert words == [word.text for word in expected.words]
    assert "language" not in done  # the model knows but one
    assert "blocks" not in stream(client, files[0])[0]


def test_silence_is_an_empty_text(client):
    silence = flac(np.zeros(RATE, np.int16))
    assert post(client, silence).json()["text"] == ""
    assert [event["type"] for event in stream(client, silence)] == ["transcript.text.done"]


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"model": "gpt-4o"}, 404, "model", "this service has tiny, whisper-1"),
        ({"response_format": "doc"}, 400, "response_format", "is one of json, text"),
        ({"temperature": "hot"}, 400, "temperature", "is a number"),
        ({"temperature": "2"}, 400, "temperature", "within 0 and 1"),
        ({"strategy": "fast"}, 400, "strategy", "is one of ctc, greedy"),
        ({"tau": "0"}, 400, "tau", "probability"),
        ({"tau": "nan"}, 400, "tau", "is a number"),
        ({"stream": "perhaps"}, 400, "stream", "is one of true"),
        ({"language": "<b>"}, 400, "language", "such as 'en'"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities", "verbose_json"),
        ({"include[]": "all"}, 400, "include", "may hold logprobs"),
        ({"stream": "true", "response_format": "srt"}, 400, "response_format", "leave one out"),
        ({"stream": "true", "response_format": "text"}, 400, "response_format", "leave one out"),
        ({"speed": "2"}, 400, "speed", "'speed' is unknown"),
        ({"tau": ["0.1", "0.2"]}, 400, "tau", "given once"),
    ],
)
def test_a_wrong_field_gets_one_sentence(client, files, fields, status, param, said):
    response = post(client, files[0], **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("error", "param", "said"),
    [
        (TokenizerError("is damaged: download it again"), "prompt", "cannot encode the prompt"),
        (LanguageError("the prompt comes to 999 tokens: shorten it"), None, "999 tokens: shorten"),
    ],
)
def test_a_prompt_that_the_model_cannot_take_is_refused(
    client, model, files, monkeypatch, error, param, said
):
    def start_tokens(*unused: object) -> tuple[int, ...]:
        raise error

    monkeypatch.setattr(model, "start_tokens", start_tokens)
    response = post(client, files[0], prompt="names")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["idna", "punycode", "utf-7", "utf-16", "undefined", "no\xe9"])
def test_a_form_in_an_odd_charset_is_refused(client, files, charset):
    """Some have no inverse: their characters would break the answer that quotes them."""
    odd = b"+2AA-\\ud800\xff"
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n--x--'
    kind = f"multipart/form-data; boundary=x; charset={charset}".encode("latin-1")
    response = client.post(URL, content=body % (odd, b"junk"), headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_charset"
    body = body % (b"a.flac", files[0])
    kind = b"multipart/form-data; boundary=x; charset=UTF-8"
    response = client.post(URL, content=body, headers={"content-type": kind})
    assert response.status_code == 200


def test_an_unknown_path_is_quoted_on_one_line(client):
    for path in ("/%1b%5b31m%0a%00", "/v1/models/%1b%5b31m%0a%00", "/%ff%fe"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"].isprintable()


def test_an_empty_field_is_an_absent_one(client, files):
    absent = post(client, files[0], response_format="verbose_json").json()
    fields = {"timestamp_granularities[]": "", "include[]": "", "tau": "", "language": ""}
    assert post(client, files[0], response_format="verbose_json", **fields).json() == absent
    assert post(client, files[0], **fields).json()["text"] == absent["text"]


def test_what_could_not_be_read_is_told_under_its_own_name(client, files, recordings):
    content = flac(recordings[-1], "WAV")
    half = content[: len(content) // 2]
    for extra in ({}, {"response_format": "verbose_json"}):
        [said] = post(client, half, "half.wav", **extra).json()["warnings"]
        assert said.startswith("half.wav is damaged or cut off: ") and "s are missing" in said
    assert stream(client, half)[-1]["warnings"][0].endswith(said.partition(" is ")[2])
    assert "warnings" not in post(client, files[0]).json()
    assert post(client, files[0], response_format="verbose_json").json()["warnings"] == []


def test_wrong_files_get_one_sentence_about_their_own_name(client, files):
    cases = {
        "is damaged or in a format": b"no audio at all",
        "is an empty file": b"",
        "holds no samples": files[3][:100],
    }
    for said, content in cases.items():
        response = post(client, content, "my\ntalk.flac")
        message = response.json()["error"]["message"]
        assert response.status_code == 400
        assert said in message
        assert message.startswith("my")
        assert "/tmp" not in message
    late = stream_or_error(client, np.random.default_rng(0).normal(0, 9000, 50 * RATE))
    assert late.status_code == 200  # what was sent of it is transcribed


def stream_or_error(client, samples: np.ndarray) -> httpx.Response:
    content = flac(samples.astype(np.int16))
    return post(client, content[: len(content) // 2], stream="true")


def test_limits_have_their_status(client, service, files):
    limits = service.settings
    long = flac(np.zeros(61 * RATE, np.int16))
    response = post(client, long)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "audio_too_long")
    large = bytes(limits.max_bytes + 1)
    response = post(client, large)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")

    def chunks():
        head = '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield head.encode()
        for _ in range(30):
            yield bytes(100_000)
        yield b"\r\n--x--\r\n"

    form = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post(URL, content=chunks(), headers=form).status_code == 413
    for content, headers, status in (
        (b"{}", {"content-type": "application/json"}, 415),
        (b"junk", form, 400),
        (b"junk", {"content-type": "multipart/form-data"}, 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--", form, 400),
    ):
        response = client.post(URL, content=content, headers=headers)
        assert response.status_code == status
        assert "send" in response.json()["error"]["message"]
    assert client.post(URL, data={"file": "text"}, files={"x": b""}).status_code == 400
    assert client.post(URL, files=[("file", files[0])] * 2).status_code == 400
    assert client.get(URL).status_code == 405
    assert "Not Found" in client.get("/v1/nothing").json()["error"]["message"]
    service.held += limits.queue
    try:
        response = post(client, files[0])
    finally:
        service.held -= limits.queue
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert post(client, files[0]).status_code == 200
    assert service.held == 0
    assert not list(pathlib.Path(service._folder.name).iterdir())


def test_a_slow_upload_and_a_client_that_leaves_give_their_place_back(model, files):
    service = Service(model, Settings(models=("tiny",), upload_seconds=0.2, warm=()))
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    async def request(leaves: bool, body: bytes) -> None:
        parts = iter([{"type": "http.request", "body": body, "more_body": body == head}])

        async def receive():
            for part in parts:
                return part
            if not leaves:
                await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        app = service.app()
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(request(False, head))
    assert [message.get("status") for message in sent[:1]] == [408]
    del sent[:]
    for body in (head, head + files[3] + b"\r\n--x--\r\n"):
        service = Service(model, Settings(models=("tiny",), warm=()))
        asyncio.run(request(True, body))
        assert not sent
        assert service.held == 0


def test_metrics_are_those_of_the_decoding(model, recordings, files, monkeypatch):
    decode, made = model.decode, []

    def noted(*args) -> list[Segment]:
        made.extend(decode(*args))
        return made[-len(args[0]) :]

    monkeypatch.setattr(model, "decode", noted)
    service = Service(model, Settings(models=("tiny",)))
    with TestClient(service.app()) as client:
        deadline = time.monotonic() + 300
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for file in files[:3]:
            assert post(client, file).status_code == 200
        assert post(client, b"junk").status_code == 400
        assert client.get("/health").json() == {"status": "live", "ready": True, "held": 0}
        text = client.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    calls, tokens = sum(s.decoder_calls for s in made), sum(len(s.tokens) for s in made)
    assert found["mtp_requests_total", "200"] == 3
    assert found["mtp_requests_total", "400"] == 1
    assert found["mtp_decoder_calls_total", "auto"] == calls
    assert found["mtp_tokens_total", "auto"] == tokens
    assert found["mtp_calls_per_token",] == pytest.approx(calls / tokens)
    proposed, accepted = sum(s.proposed for s in made), sum(s.accepted for s in made)
    assert 0 <= accepted <= proposed
    assert proposed > 0
    assert found["mtp_acceptance",] == pytest.approx(accepted / proposed)
    seconds = sum(s.end - s.start for s in made)
    assert found["mtp_audio_seconds_total",] == pytest.approx(seconds)
    assert found["mtp_rtfx",] > 0
    assert found["mtp_request_seconds_count",] == 3
    assert found["mtp_batch_chunks_sum",] == len(made)


def test_batches_give_the_texts_of_one_by_one(model, recordings, tmp_path):
    """Twelve recordings at once, in two strategies, one of them long: fewer batches, same texts."""
    metrics = Metrics()
    engine = Engine(model, 0.2, 3600.0, metrics)
    paths = []
    for i, wave in enumerate(recordings):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], wave, RATE)
    results: dict[int, list] = {i: [] for i in range(12)}
    over = threading.Semaphore(0)

    def emit(i: int, event) -> None:
        results[i].append(event)
        if not isinstance(event, Segment):
            over.release()

    names = ["ctc" if i % 3 == 2 else "verify" for i in range(12)]
    for i, name in enumerate(names):  # all wait before the first is decoded
        strategy = model.strategy(name)
        engine.submit(str(paths[i % 4]), strategy, name, lambda event, i=i: emit(i, event))
    engine.start()
    for _ in results:
        assert over.acquire(timeout=300)
    engine.close()
    for i, events in results.items():
        *segments, transcript = events
        assert isinstance(transcript, Transcript), transcript
        expected = model.transcribe(recordings[i % 4], rate=RATE, strategy=names[i])
        assert transcript.text == expected.text
        assert transcript.segments == tuple(segments)
        assert transcript.decoder_calls == expected.decoder_calls
        assert transcript.audio_seconds == pytest.approx(expected.audio_seconds)
    samples = {s.name: s.value for f in metrics._registry.collect() for s in f.samples}
    assert samples["mtp_batch_chunks_count"] < samples["mtp_batch_chunks_sum"]


def word(text: str, start: float) -> Word:
    return Word(text, start, start + 0.2, 1.0)


def segment(start: float, end: float, *words: Word) -> Segment:
    return Segment(start, end, words, (), 1)


def test_segments_come_in_order_and_only_when_nothing_can_change_them():
    events: list = []
    job = Job(lambda job: iter(()), None, "ctc", False, events.append)
    chunks = [Chunk(0, np.zeros(1), 1), Chunk(4, np.zeros(1), 1, True), Chunk(9, np.zeros(1), 1)]
    for chunk in chunks:
        job.add(chunk)
    first, second, third = list(job.waiting)
    assert [item.place for item in (first, second, third)] == [(1,), (2,), (3,)]
    job.found(third, segment(9, 12, word("e", 10)))
    job.found(first, segment(0, 5, word("a", 1), word("b", 4.4), word("bad", 4.8)))
    assert not events  # the second overlaps the first
    parts = [Chunk(4, np.zeros(1), 1, True), Chunk(6, np.zeros(1), 1)]
    job.split(second, parts)
    early, late = list(job.waiting)[:2]
    job.found(late, segment(6, 8, word("d", 7)))
    assert not events
    job.found(early, segment(4, 6, word("bed", 4.1), word("b", 4.4), word("c", 5)))
    assert [s.text for s in events] == ["a b", "c", "d"]
    job.all_read()
    assert [s.text for s in events] == ["a b", "c", "d", "e", "a b c d e"]
    job.fail(ValueError())
    assert len(events) == 5


def test_a_batch_is_fair_and_wastes_no_padding(model):
    engine = Engine(model, 0.0, 60.0, Metrics())
    lengths = model.lengths
    short, long = (Chunk(0, np.zeros(n, np.int16), 1) for n in (lengths[0], lengths[-1]))

    def job(strategy, *chunks: Chunk) -> Job:
        made = Job(lambda job: iter(()), strategy, "", False, lambda event: None)
        for chunk in chunks:
            made.add(chunk)
        with engine._change:
            engine._queue(made)
        return made

    verify = model.strategy("verify")
    many, one, other = job(verify, *[long] * 9), job(verify, short), job(None, long)
    chosen = engine._next_batch()  # longer ones first, behind the chunk whose turn it is
    assert [job for job, _ in chosen][:1] == [many]
    assert {job.strategy for job, _ in chosen} == {verify}
    assert len(chosen) == model.batch_size
    following = engine._next_batch()  # not `many` again
    assert following[0][0] is (one if one in {job for job, _ in following} else other)
    assert all(len(item.chunk.audio) <= len(following[0][1].chunk.audio) for _, item in following)
    rest = [engine._next_batch() for _ in range(len(engine._jobs))]
    assert other in {job for batch in (following, *rest) for job, _ in batch}


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(names) == {"page.css", "page.js", "live.js", "icon.svg"}
    for name in names:
        response = client.get(f"/{name}")
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/)", response.text)
