"""The application: its routes, and how many requests and live sessions it holds."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from mtp_jax.decoding import registry
from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.engine import Engine
from mtp_jax.serving.guard import PAGE_FILES, guards
from mtp_jax.serving.metrics import Metrics
from mtp_jax.serving.realtime import realtime
from mtp_jax.serving.refusal import LONGEST_RETRY, Refused, stopped
from mtp_jax.serving.transcription_request import TranscriptionRequest
from mtp_jax.transcription.outputs import shown
from mtp_jax.transcription.transcriber import Transcriber

_PAGE = Path(__file__).parent / "page"
_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
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
        return TranscriptionRequest(self)

    async def translate(self, request: Request) -> Response:
        """POST /v1/audio/translations: into English, where the model can."""
        if not self.model.languages:
            return Refused(
                404, "this service's model does not translate: serve a Whisper"
            ).response()
        return TranscriptionRequest(self, "translate")

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
            return stopped().response()
        return JSONResponse({"status": "live", "ready": self.engine.ready, "held": self.held})

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: 200 once programs are compiled, else 503."""
        if self.engine.failed:
            return stopped().response()
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
            raise stopped()
        if self.held >= self.settings.queue:
            wait = min(max(math.ceil(self._typical), 1), LONGEST_RETRY)
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
            raise stopped()
        if not self.settings.live:
            raise Refused(404, "this service offers no live captions: see --live_sessions")
        if self.live >= self.settings.live:
            raise Refused(
                503,
                f"the service holds {self.live} live sessions, and takes no more: try again later",
                code="queue_full",
                retry_after=LONGEST_RETRY,
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


def _strategy(name: str) -> dict[str, object]:
    """What the registry says of a strategy to people, and to the page."""
    entry = registry.get(name)
    return {
        "name": name,
        "summary": entry.summary,
        "calls_decoder": entry.calls_decoder,
        "takes_tau": entry.takes_tau,
    }


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mtp_jax-serve-")


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
