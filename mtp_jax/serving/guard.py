"""What stands before every route: the check of the API key, and the leave for other sites."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mtp_jax.serving.access import ApiKeys
from mtp_jax.serving.metrics import Metrics
from mtp_jax.serving.refusal import Refused
from mtp_jax.serving.upload import Body

# Asked for by whoever watches over the process, and the page that asks a person for the key. None
# of them tells anything of the model or of its use.
OPEN = frozenset({"/", "/page.css", "/page.js", "/icon.svg"}) | {
    f"/health{kind}" for kind in ("", "/live", "/ready")
}


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
    found = []
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
    if keys is not None:
        found.append(Middleware(_KeyCheck, keys=keys, metrics=metrics, max_bytes=max_bytes))
    return found


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
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
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
        if scope["method"] == "POST":
            self._metrics.requests.labels("401").inc()
            await Body(scope, receive, self._max_bytes, 0.0).discard()
        await refused(scope, receive, send)
