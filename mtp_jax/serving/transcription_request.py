"""One request for a transcription or a translation, from its first byte to its last."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mtp_jax.audio.reading import AudioError, audio_seconds
from mtp_jax.serving.answers import answer, delta, done, event
from mtp_jax.serving.engine import Stopped, TooLong
from mtp_jax.serving.job import Job
from mtp_jax.serving.options import Options, read_options
from mtp_jax.serving.refusal import LONGEST_RETRY, Refused, stopped
from mtp_jax.serving.start_tokens import start_tokens
from mtp_jax.serving.upload import Body, Gone
from mtp_jax.transcription.outputs import shown
from mtp_jax.transcription.recordings import Event
from mtp_jax.transcription.results import Segment, Transcript

if TYPE_CHECKING:
    from mtp_jax.serving.app import Service

_GONE = 499  # nginx's status of a request whose client left

log = logging.getLogger("mtp_jax")


class TranscriptionRequest(Response):
    """The answer to one request for a transcription; all that it holds is given back."""

    def __init__(self, service: Service, task: str = "transcribe") -> None:
        self._service, self._task = service, task
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, start, status = self._service, time.monotonic(), 500
        settings = service.settings
        body = Body(scope, receive, settings.max_bytes, settings.upload_seconds)
        try:
            try:
                service.admit()
            except Refused as refused:
                await body.discard()
                status = refused.status
                await refused.response()(scope, receive, send)
                return
            try:
                status = await self._serve(body, scope, receive, send)
            finally:
                service.release(status, time.monotonic() - start)
        except asyncio.CancelledError:
            status = _GONE
            raise
        finally:
            service.metrics.requests.labels(str(status)).inc()

    async def _serve(self, body: Body, scope: Scope, receive: Receive, send: Send) -> int:
        """Answers; returns the status."""
        service, settings = self._service, self._service.settings
        form: FormData | None = None
        job: Job | None = None
        path: str | None = None
        try:
            try:
                with _room():
                    form = await body.form()
                options = read_options(
                    form,
                    settings.models,
                    service.model.strategies,
                    settings.strategy,
                    settings.tau,
                    service.model.languages,
                    service.model.takes_prompt,
                )
                start = start_tokens(service.model, options.language, self._task, options.prompt)
                with _room():
                    path = service.temporary()  # only now: an upload may take minutes
                    await run_in_threadpool(_save, options.file, path)
                name = shown(options.file.filename or "the recording")[:200]
                await run_in_threadpool(self._check, path, name)
                strategy = service.model.strategy(options.strategy, options.tau)
                loop = asyncio.get_running_loop()

                def emit(happened: Event) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop was closed
                        loop.call_soon_threadsafe(self._events.put_nowait, happened)

                job = service.engine.submit(path, strategy, options.strategy, emit, start)
                response = await self._response(body, options, path, name)
            except Refused as refused:
                await body.discard()
                response = refused.response()
            await response(scope, receive, send)
            return response.status_code
        except Gone:
            return _GONE
        finally:
            if job:
                service.engine.cancel(job)
            if form:
                await form.close()
            if path:
                Path(path).unlink(missing_ok=True)

    def _check(self, path: str, name: str) -> None:
        """Refuses what is too long, by its header or by so much of it as may be decoded."""
        longest = self._service.settings.max_seconds
        try:
            seconds = audio_seconds(path, at_most=longest)
        except AudioError:  # the engine reads it: it counts a length that no header tells,
            return  # or says what is wrong
        if seconds > longest:
            raise self._refused(TooLong(), path, name)

    async def _response(self, body: Body, options: Options, path: str, name: str) -> Response:
        """The whole answer, or the beginning of a stream; waits for what decides its status.

        Raises:
            Refused: the recording cannot be used.
            Gone: nobody waits.
        """
        gone = asyncio.ensure_future(body.gone())
        try:
            while True:
                following = asyncio.ensure_future(self._events.get())
                await asyncio.wait((gone, following), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    raise Gone
                happened = following.result()
                if isinstance(happened, Exception):
                    raise self._refused(happened, path, name)
                if options.stream:
                    return StreamingResponse(
                        self._stream(happened, options, path, name),
                        media_type="text/event-stream",
                        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                    )
                if isinstance(happened, Transcript):
                    named = _named(happened, path, name)
                    return answer(named, options, self._service.language, self._task)
        finally:
            gone.cancel()

    async def _stream(
        self, happened: Event, options: Options, path: str, name: str
    ) -> AsyncIterator[str]:
        """Server-sent events, from the first that `happened`."""
        first = True
        while isinstance(happened, Segment):
            if happened.words or "blocks" in options.include:
                yield event(delta(happened, first, options))
            first = first and not happened.words
            happened = await self._events.get()
        if isinstance(happened, Transcript):
            yield event(done(_named(happened, path, name), options))
        else:
            yield event(self._refused(happened, path, name).body)
        yield "data: [DONE]\n\n"

    def _refused(self, error: Exception, path: str, name: str) -> Refused:
        """What went wrong with a recording, in a sentence about the name that it was sent under."""
        if isinstance(error, AudioError):
            sentence = " ".join(str(error).replace(path, name).split())
            return Refused(400, sentence, "file", "invalid_audio")
        if isinstance(error, TooLong):
            longest = self._service.settings.max_seconds
            sentence = f"{name} is longer than {longest:g} s: send it in parts"
            return Refused(413, sentence, "file", "audio_too_long")
        if isinstance(error, Stopped):
            return stopped()
        return Refused(500, f"{name} could not be decoded: the log of the service says why")


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """What keeps a recording, on a disk that may be full.

    Raises:
        Refused: it is, or cannot be written.
    """
    try:
        yield
    except OSError as error:
        log.error("a recording cannot be kept in %s: %s", tempfile.gettempdir(), error)
        raise Refused(
            *(503, "the service has no room for the recording: try again later"),
            code="no_room",
            retry_after=LONGEST_RETRY,
        ) from None


def _named(transcript: Transcript, path: str, name: str) -> Transcript:
    """With the name that the recording was sent under in its warnings."""
    warnings = tuple(" ".join(said.replace(path, name).split()) for said in transcript.warnings)
    return dataclasses.replace(transcript, warnings=warnings)


def _save(file: UploadFile, path: str) -> None:
    file.file.seek(0)
    with Path(path).open("wb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)
