"""The application: routes, admission, and one request from its first byte to its last."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from mtp_jax.audio.reading import AudioError, audio_seconds
from mtp_jax.decoding import registry
from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.answers import answer, delta, done, event
from mtp_jax.serving.engine import Engine, Stopped, TooLong
from mtp_jax.serving.guard import PAGE_FILES, guards
from mtp_jax.serving.job import Job
from mtp_jax.serving.metrics import Metrics
from mtp_jax.serving.options import Options, read_options
from mtp_jax.serving.realtime import realtime
from mtp_jax.serving.refusal import Refused
from mtp_jax.serving.start_tokens import start_tokens
from mtp_jax.serving.upload import Body, Gone
from mtp_jax.transcription.outputs import shown
from mtp_jax.transcription.recordings import Event
from mtp_jax.transcription.results import Segment, Transcript
from mtp_jax.transcription.transcriber import Transcriber

_PAGE = Path(__file__).parent / "page"
_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_GONE = 499  # nginx's status of a request whose client left
_LONGEST_RETRY = 60  # s
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

log = logging.getLogger("mtp_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the service offers, and how much it takes.

    Attributes:
        models: names that the model answers to, its own first.
        strategy, tau: where a request names none.
        max_bytes, max_seconds: of a recording.
        queue: requests held at a time, uploads included.
        upload_seconds: that a recording may take to arrive.
        max_wait: s that a chunk of audio waits for others to share its batch with.
        warm: strategies that are compiled at the start.
        keys: that open the service; None for one that is open to all who reach it.
        origins: sites whose pages may read its answers.
        live: sessions of live captions at a time; 0 offers none.
        idle_seconds: after which a session in which nothing is sent is closed.
    """

    models: tuple[str, ...]
    strategy: str = "auto"
    tau: float | None = None
    max_bytes: int = 100_000_000
    max_seconds: float = 7200.0
    queue: int = 64
    upload_seconds: float = 300.0
    max_wait: float = 0.005
    warm: tuple[str, ...] = ("auto",)
    keys: ApiKeys | None = None
    origins: tuple[str, ...] = ()
    live: int = 8
    idle_seconds: float = 300.0


class Service:
    """One model behind the routes of the OpenAI audio API, and what belongs to a service.

    Args:
        model: what transcribes.
        settings: limits and defaults.
    """

    def __init__(self, model: Transcriber, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.metrics = Metrics()
        self.engine = Engine(
            *(model, settings.max_wait, settings.max_seconds, self.metrics, settings.warm),
            settings.live,
        )
        self.held = self.live = 0
        self.started = int(time.time())
        self._typical = 1.0  # s that a request takes, of late
        self._folder = _folder()
        normalizer = model.runner.model.config.evaluation.normalizer
        self.language = "english" if normalizer == "english" else "unknown"
        self.metrics.held.set_function(lambda: self.held)
        self.metrics.live.set_function(lambda: self.live)

    def app(self) -> Starlette:
        """The ASGI application."""
        s = self.settings
        return Starlette(
            routes=[
                Route("/v1/audio/transcriptions", self.transcribe, methods=["POST"]),
                Route("/v1/audio/translations", self.translate, methods=["POST"]),
                WebSocketRoute("/v1/realtime", self.realtime),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.one_model),
                Route("/health", self.health),
                Route("/health/live", self.health),
                Route("/health/ready", self.ready),
                Route("/metrics", self.prometheus),
                Route("/", _page("index.html")),
                *(Route(f"/{name}", _page(name)) for name in PAGE_FILES),
            ],
            middleware=guards(s.origins, s.keys, self.metrics, s.max_bytes),
            exception_handlers={HTTPException: _no_route, Exception: _broken},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        del app
        self.engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(self.engine.close)
            self._folder.cleanup()

    async def transcribe(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        return _Transcription(self)

    async def translate(self, request: Request) -> Response:
        """POST /v1/audio/translations: into English, where the model can."""
        if not self.model.languages:
            return Refused(
                404, "this service's model does not translate: serve a Whisper"
            ).response()
        return _Transcription(self, "translate")

    async def realtime(self, socket: WebSocket) -> None:
        """GET /v1/realtime, upgraded to a WebSocket."""
        await realtime(self, socket)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse(
            {"object": "list", "data": list(map(self._model, self.settings.models))}
        )

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        if name not in self.settings.models:
            there = ", ".join(self.settings.models)
            message = f"the model {name[:80]!r} does not exist: this service has {there}"
            return Refused(404, message, "model", "model_not_found").response()
        return JSONResponse(self._model(name))

    async def health(self, request: Request) -> Response:
        """GET /health and /health/live: 200 while the process can answer, else 503."""
        if self.engine.failed:
            return _stopped().response()
        return JSONResponse({"status": "live", "ready": self.engine.ready, "held": self.held})

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: 200 once programs are compiled, else 503."""
        if self.engine.failed:
            return _stopped().response()
        if self.engine.ready:
            return JSONResponse({"status": "ready"})
        return Refused(
            503, "the service is not ready: its programs are being compiled", retry_after=5
        ).response()

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def admit(self) -> None:
        """Takes one of the places in the queue.

        Raises:
            Refused: there is none, or nothing is decoded any more.
        """
        if self.engine.failed:
            raise _stopped()
        if self.held >= self.settings.queue:
            wait = min(max(math.ceil(self._typical), 1), _LONGEST_RETRY)
            raise Refused(
                503,
                f"the service holds {self.held} requests, and takes no more: try again in {wait} s",
                code="queue_full",
                retry_after=wait,
            )
        self.held += 1

    def admit_live(self) -> None:
        """Takes one of the places for live captions.

        Raises:
            Refused: there is none, or nothing is decoded any more.
        """
        if self.engine.failed:
            raise _stopped()
        if not self.settings.live:
            raise Refused(404, "this service offers no live captions: see --live_sessions")
        if self.live >= self.settings.live:
            raise Refused(
                503,
                f"the service holds {self.live} live sessions, and takes no more: try again later",
                code="queue_full",
                retry_after=_LONGEST_RETRY,
            )
        self.live += 1

    def release_live(self) -> None:
        """Gives the place back."""
        self.live -= 1

    def release(self, status: int, seconds: float) -> None:
        """Gives the place back."""
        self.held -= 1
        if status == 200:
            self._typical += 0.1 * (seconds - self._typical)
            self.metrics.latency.observe(seconds)

    def temporary(self) -> str:
        """A new file."""
        if not Path(self._folder.name).is_dir():  # swept away by a cleaner of temporary files
            self._folder.cleanup()
            self._folder = _folder()
        handle, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(handle)
        return path

    def _model(self, name: str) -> dict[str, object]:
        s = self.settings
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "mtp_jax",
            "strategies": list(map(_strategy, self.model.strategies)),
            "languages": list(self.model.languages),
            "strategy": s.strategy,
            "tau": self.model.tau if s.tau is None else s.tau,
            "max_bytes": s.max_bytes,
            "max_seconds": s.max_seconds,
            "live_sessions": s.live,
        }


class _Transcription(Response):
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
            return _stopped()
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
            retry_after=_LONGEST_RETRY,
        ) from None


def _named(transcript: Transcript, path: str, name: str) -> Transcript:
    """With the name that the recording was sent under in its warnings."""
    warnings = tuple(" ".join(said.replace(path, name).split()) for said in transcript.warnings)
    return dataclasses.replace(transcript, warnings=warnings)


def _strategy(name: str) -> dict[str, object]:
    """What the registry says of a strategy to people, and to the page."""
    entry = registry.get(name)
    return {
        "name": name,
        "summary": entry.summary,
        "calls_decoder": entry.calls_decoder,
        "takes_tau": entry.takes_tau,
    }


def _stopped() -> Refused:
    return Refused(503, "the service decodes nothing any more: its log says why; start it anew")


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mtp_jax-serve-")


def _save(file: UploadFile, path: str) -> None:
    file.file.seek(0)
    with Path(path).open("wb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)


def _page(name: str):  # type: ignore[no-untyped-def]  # a route
    async def page(request: Request) -> Response:
        content = await run_in_threadpool((_PAGE / name).read_bytes)
        return Response(content, media_type=_MEDIA[name.rpartition(".")[2]], headers=_HEADERS)

    return page


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {shown(request.url.path[:80])}: {error.detail}"
    response = Refused(error.status_code, sentence).response()
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    return Refused(500, "the service failed: its log says why").response()
