"""The service as a command: a real client, a clean end, wrong flags."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest

from mtp_jax.transcription.formats import formatted
from tests.recordings import RATE

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def served(workdir: pathlib.Path, *flags: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command, and its address."""
    command = [sys.executable, "-m", "mtp_jax.serve", f"--model={workdir}", "--port=0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            line = process.stderr.readline()
            found = re.match(r"(http://\S+) serves", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


def test_the_openai_client_works_and_sigterm_loses_nothing(workdir, model, recordings, files):
    expected = [model.transcribe(wave, rate=RATE) for wave in recordings]
    with served(workdir, "--warm=", "--batch_size=4", "--queue=40") as (process, address):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300) as client:
            audio = client.audio.transcriptions
            assert [m.id for m in client.models.list()] == ["tiny", "whisper-1"]
            assert client.models.retrieve("tiny").owned_by == "mtp_jax"
            named = ("talk.flac", files[3])
            plain = audio.create(file=named, model="whisper-1")
            assert plain.text == expected[3].text
            for kind in ("srt", "vtt"):
                text = audio.create(file=named, model="tiny", response_format=kind)
                assert text == formatted(expected[3], kind)
            text = audio.create(file=named, model="tiny", response_format="text")
            assert text.strip() == expected[3].text
            verbose = audio.create(
                file=named,
                model="tiny",
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
                temperature=0.0,
                language="en",
                prompt="names",
            )
            assert [w.word for w in verbose.words] == [w.text for w in expected[3].words]
            assert " ".join(s.text.strip() for s in verbose.segments) == expected[3].text
            events = list(audio.create(file=named, model="tiny", stream=True))
            assert events[-1].text == expected[3].text
            deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
            assert "".join(deltas) == expected[3].text
            with pytest.raises(openai.BadRequestError, match=r"notes\.txt is damaged") as raised:
                audio.create(file=("notes.txt", b"no audio"), model="tiny")
            assert raised.value.param == "file"
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                audio.create(file=named, model="gpt")

        async def many() -> list[str]:
            async with openai.AsyncOpenAI(
                base_url=f"{address}/v1", api_key="none", timeout=300, max_retries=0
            ) as client:
                tasks = [
                    asyncio.create_task(
                        client.audio.transcriptions.create(
                            file=("talk.flac", files[i % 4]), model="tiny"
                        )
                    )
                    for i in range(24)
                ]
                async with httpx.AsyncClient() as other:
                    while (await other.get(f"{address}/health")).json()["held"] < 24:
                        await asyncio.sleep(0.01)
                        if any(task.done() for task in tasks):
                            break
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.5)
                return [(await task).text for task in tasks]

        texts = asyncio.run(many())
        assert texts == [expected[i % 4].text for i in range(24)]
        host, port = address.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=10)
        assert process.wait(timeout=60) == 0
        assert "all requests were answered" in process.stderr.read()


def command(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mtp_jax.serve", *flags], capture_output=True, text=True, cwd=ROOT
    )


def test_a_wrong_command_gets_one_sentence(workdir, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, status, said in (
            (("--model=x",), 1, "x is no folder of a model"),
            (("--model=x", "--strategy=fast"), 2, "fast is not one of"),
            (("--model=x", "--warm=verify,fast"), 2, "--warm=fast is not one of"),
            (("--model=x", "--tau=7"), 2, "--tau=7"),
            ((f"--model={workdir}", f"--port={port}"), 1, "cannot be listened on"),
        ):
            done = command(*flags)
            assert done.returncode == status, done.stderr
            assert said in done.stderr
            assert "Traceback" not in done.stderr


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['serve', '--model=x'];"
        "from mtp_jax import cli, serve; sys.exit(cli.run(serve.main))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "package uvicorn is missing: pip install '.[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_just_before_the_service_listens_is_not_lost():
    code = (
        "import os, signal, uvicorn; from mtp_jax import interrupts, serve\n"
        "async def app(scope, receive, send): pass\n"
        "interrupts.install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "config = uvicorn.Config(app, lifespan='off', port=0, log_level='warning')\n"
        "serve._server(config).run()\n"
        "print('ended')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
