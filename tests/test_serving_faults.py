"""What the service does when something of it breaks: nobody waits for ever, and health tells."""

from __future__ import annotations

import errno
import pathlib
import queue
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from mtp_jax.audio.reading import AudioError
from mtp_jax.serving import transcription_request
from mtp_jax.serving.app import Service, Settings
from mtp_jax.serving.engine import Engine, Stopped
from mtp_jax.serving.job import Cancelled
from mtp_jax.serving.metrics import Metrics
from mtp_jax.transcription.results import Transcript
from tests.recordings import RATE

URL = "/v1/audio/transcriptions"


def post(client: TestClient, file: bytes, **fields):
    return client.post(URL, files={"file": ("talk.flac", file)}, data=fields)


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def wav(recordings, tmp_path) -> str:
    path = tmp_path / "talk.wav"
    soundfile.write(path, recordings[0], RATE)
    return str(path)


def test_a_failed_warm_up_fails_every_request_and_both_health_checks(
    model, files, wav, monkeypatch
):
    compile_, waits = threading.Event(), threading.Event()

    def prepare(*unused: object) -> None:
        waits.set()
        compile_.wait(120)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "prepare", prepare)
    service = Service(model, Settings(models=("tiny",)))
    happened: queue.Queue = queue.Queue()
    with TestClient(service.app()) as client:
        assert waits.wait(120)
        assert client.get("/health/live").status_code == 200
        verify = model.strategy("verify")
        service.engine.submit(wav, verify, "verify", happened.put)
        compile_.set()
        assert isinstance(happened.get(timeout=120), Stopped)
        service.engine.submit(wav, verify, "verify", happened.put)
        assert isinstance(happened.get(timeout=120), Stopped)
        answers = [client.get(f"/health{kind}") for kind in ("", "/live", "/ready")]
        answers.append(post(client, files[0]))
        for answer in answers:
            assert answer.status_code == 503
            assert "decodes nothing any more" in answer.json()["error"]["message"]
    assert service.held == 0


def test_a_folder_that_a_cleaner_swept_away_is_made_again(model, files):
    service = Service(model, Settings(models=("tiny",), warm=()))
    with TestClient(service.app()) as client:
        shutil.rmtree(service._folder.name)
        assert post(client, files[0]).status_code == 200
        assert not list(pathlib.Path(service._folder.name).iterdir())


def test_a_length_that_no_header_tells_is_counted_whatever_the_words(
    model, files, recordings, monkeypatch
):
    def unknown(path: str, at_most: float) -> float:
        raise AudioError(f"{path}: its length is anybody's guess")

    monkeypatch.setattr(transcription_request, "audio_seconds", unknown)
    length = len(recordings[0]) / RATE
    for limit, status in ((length + 1, 200), (length - 1, 413)):
        settings = Settings(models=("tiny",), warm=(), max_seconds=limit)
        with TestClient(Service(model, settings).app()) as client:
            assert post(client, files[0]).status_code == status


def test_what_is_cancelled_while_it_waits_is_let_go(model, tmp_path, monkeypatch):
    """Parked and all: its file is closed, nothing of it is queued, and others are answered."""
    path = tmp_path / "long.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.integers(-9000, 9000, 200 * RATE).astype(np.int16), RATE)
    speech = lambda self, block: np.ones(len(block) // 512, np.float32)  # noqa: E731
    monkeypatch.setattr("mtp_jax.audio.vad.VoiceActivity.feed", speech)
    engine, events = Engine(model, 0.0, 3600.0, Metrics()), []
    verify = model.strategy("verify")
    jobs = [engine.submit(str(path), verify, "verify", events.append) for _ in range(2)]
    until(lambda: all(job.parked for job in jobs))
    for job in jobs:
        engine.cancel(job)
        engine.cancel(job)
    until(lambda: all(job.chunks.gi_frame is None for job in jobs))
    assert [type(event) for event in events] == [Cancelled, Cancelled]
    assert not engine._jobs
    assert not engine._held
    last: queue.Queue = queue.Queue()
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE, np.int16), RATE)
    monkeypatch.undo()
    engine.submit(str(tmp_path / "quiet.wav"), verify, "verify", last.put)
    assert isinstance(last.get(timeout=120), Transcript)
    engine.start()
    engine.close()


def test_a_batch_that_fails_fails_its_jobs_and_closes_their_files(model, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.integers(-9000, 9000, 200 * RATE).astype(np.int16), RATE)
    speech = lambda self, block: np.ones(len(block) // 512, np.float32)  # noqa: E731
    monkeypatch.setattr("mtp_jax.audio.vad.VoiceActivity.feed", speech)

    def broken(*unused: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "decode", broken)
    engine, last = Engine(model, 0.0, 3600.0, Metrics()), queue.Queue()
    job = engine.submit(str(path), model.strategy("verify"), "verify", last.put)
    until(lambda: job.parked)
    engine.start()
    assert isinstance(last.get(timeout=120), RuntimeError)
    until(lambda: job.chunks.gi_frame is None)
    assert not engine.failed
    engine.close()


def test_a_thread_that_dies_while_it_decodes_fails_what_is_held(model, files, monkeypatch):
    """Each request is told so, those that come later too, and nothing is left behind."""
    decode, lost = model.decode_timed, threading.Event()

    def dying(*args):
        if lost.is_set():
            raise SystemExit("the accelerator is lost")
        return decode(*args)

    monkeypatch.setattr(model, "decode_timed", dying)
    service = Service(model, Settings(models=("tiny",), warm=()))
    with TestClient(service.app()) as client:
        assert post(client, files[0]).status_code == 200
        lost.set()
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda file: post(client, file), [*files, *files[:2]]))
        answers.append(post(client, files[0]))
        for answer in answers:
            assert answer.status_code == 503
            assert "decodes nothing any more" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 503
        assert not list(pathlib.Path(service._folder.name).iterdir())
    assert service.held == 0


def test_whatever_reading_ends_by_is_told(model, files, monkeypatch):
    def cut(*unused: object):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(model, "cut", cut)
    service = Service(model, Settings(models=("tiny",), warm=()))
    with TestClient(service.app()) as client:
        answer = post(client, files[0])
    assert answer.status_code == 500
    assert "could not be decoded" in answer.json()["error"]["message"]


@pytest.mark.parametrize("where", ["upload", "file"])
def test_a_full_disk_is_told_and_nothing_is_left(model, files, recordings, monkeypatch, where):
    def full(*unused: object):
        raise OSError(errno.ENOSPC, "No space left on device")

    service = Service(model, Settings(models=("tiny",), warm=()))
    with TestClient(service.app()) as client:
        with monkeypatch.context() as patch:
            if where == "upload":
                patch.setattr("starlette.datastructures.UploadFile.write", full)
            else:
                patch.setattr(transcription_request, "_save", full)
            answer = post(client, files[0])
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_room"
        assert int(answer.headers["retry-after"]) > 0
        assert post(client, files[0]).status_code == 200
        assert not list(pathlib.Path(service._folder.name).iterdir())
    assert service.held == 0


def test_closing_fails_what_is_not_over(model, wav):
    engine, last = Engine(model, 3600.0, 3600.0, Metrics()), queue.Queue()
    engine.start()
    job = engine.submit(wav, model.strategy("verify"), "verify", last.put)
    until(lambda: job.outstanding)
    engine.close()
    assert isinstance(last.get(timeout=120), Stopped)


def test_closing_closes_the_files_of_recordings_that_wait(model, tmp_path, monkeypatch):
    """Those that nobody reads on: parked with enough pieces, or not yet begun again."""
    path = tmp_path / "long.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.integers(-9000, 9000, 200 * RATE).astype(np.int16), RATE)
    speech = lambda self, block: np.ones(len(block) // 512, np.float32)  # noqa: E731
    monkeypatch.setattr("mtp_jax.audio.vad.VoiceActivity.feed", speech)
    engine = Engine(model, 3600.0, 3600.0, Metrics())
    monkeypatch.setattr(engine, "_next_batch", list)  # nothing is decoded
    engine.start()
    verify = model.strategy("verify")
    jobs = [engine.submit(str(path), verify, "verify", lambda event: None) for _ in range(9)]
    until(lambda: sum(job.parked for job in jobs) == 9)
    engine.close()
    assert all(job.chunks.gi_frame is None for job in jobs)
