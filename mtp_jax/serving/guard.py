"""What stands before every route: the check of the API key, and the leave for other sites.

The version of HTTP is checked first: what begins a connection in HTTP/2 looks like a request.

A browser lets the pages of any site open a WebSocket, and has them set no headers of it. So its
origin is checked here, and the key may come as a subprotocol, as the OpenAI API has it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.metrics import Metrics
from mtp_jax.serving.refusal import Refused
from mtp_jax.serving.upload import Body

# Asked for by whoever watches over the process, and the page that asks a person for the key. None
# of them tells anything of the model or of its use.
PAGE_FILES = ("page.css", "page.js", "live.js", "microphone.js", "icon.svg")
OPEN = frozenset(
    ("/", *(f"/{name}" for name in PAGE_FILES), "/health", "/health/live", "/health/ready")
)


_KEY_PROTOCOL = "openai-insecure-api-key."  # the key follows
_ENCODED_KEY_PROTOCOL = "mtp-jax-key."  # the same, of keys with other letters: base64url follows


def guards(
    origins: Sequence[str], keys: ApiKeys | None, metrics: Metrics, max_bytes: int
) -> list[Middleware]:
    """What requests pass before they reach a route.

    Args:
        origins: sites whose pages may read the answers; `keys`: that open the service, None for
            one that is open to all who reach it.
        metrics: told what is refused.
        max_bytes: of a body that is read to its end, so that its sender sees why it is refused.
    """
    found = [Middleware(_VersionCheck)]
    if origins:  # outside of the check of keys: a browser asks first, and without one
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # Authorization too; clients add some of their own
                expose_headers=["Retry-After"],
            )
        )
    found.append(Middleware(_OriginCheck, origins=tuple(origins)))
    if keys is not None:
        found.append(Middleware(_KeyCheck, keys=keys, metrics=metrics, max_bytes=max_bytes))
    return found


class _VersionCheck:
    """Refuses requests in another version of HTTP than 1.0 and 1.1."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["http_version"] not in ("1.0", "1.1"):
            message = "this service speaks HTTP/1.1: send the request in that version"
            answer = Refused(505, message).response()
            answer.headers["Connection"] = "close"  # what follows is no request
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _OriginCheck:
    """Refuses WebSockets of pages that are neither the service's own nor of a named site.

    Args:
        app: that the others reach.
        origins: sites whose pages may; ``*`` for all.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self._is_welcome(dict(scope["headers"])):
            refused = Refused(
                403,
                "pages of this site may not use the service: see --cors_origins",
                code="origin_not_allowed",
            )
            await WebSocket(scope, receive, send).send_denial_response(refused.response())
            return
        await self._app(scope, receive, send)

    def _is_welcome(self, headers: dict[bytes, bytes]) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or "*" in self._origins or origin in self._origins:
            return True  # programs send none
        return origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1")


class _KeyCheck:
    """Refuses requests without one of the keys, before anything of them is kept.

    Args:
        app: that the others reach.
        keys: that open it.
        metrics: told what is refused.
        max_bytes: of a body that is read to its end.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, metrics: Metrics, max_bytes: int) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if scope["type"] == "websocket":
            given += _keys_of_protocols(scope)
        if len(given) == 1 and self._keys.opened_by(given[0]):
            await self._app(scope, receive, send)
            return
        what = "no API key comes with the request" if not given else "the API key is not right"
        refused = Refused(
            401,
            f"{what}: send the header 'Authorization: Bearer KEY' with a key of this service",
            code="invalid_api_key",
        ).response()
        refused.headers["WWW-Authenticate"] = "Bearer"
        if scope["type"] == "websocket":
            self._metrics.requests.labels("401").inc()
            await WebSocket(scope, receive, send).send_denial_response(refused)
            return
        if scope["method"] == "POST":
            self._metrics.requests.labels("401").inc()
            await Body(scope, receive, self._max_bytes, 0.0).discard()
        await refused(scope, receive, send)


def _keys_of_protocols(scope: Scope) -> list[bytes]:
    """As Authorization headers: of a client that can send none."""
    found = []
    for protocol in scope.get("subprotocols", []):
        if protocol.startswith(_KEY_PROTOCOL):
            found.append(protocol.removeprefix(_KEY_PROTOCOL).encode())
        elif protocol.startswith(_ENCODED_KEY_PROTOCOL):
            encoded = protocol.removeprefix(_ENCODED_KEY_PROTOCOL).encode()
            with contextlib.suppress(ValueError):
                found.append(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
    return [b"Bearer " + key for key in found]
