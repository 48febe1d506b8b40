"""An application behind the connections that the serve command gives it, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from mtp_jax.serving.connections import bounded


@contextlib.contextmanager
def listening(app: Any, seconds: float, lifespan: str = "on") -> Iterator[tuple[str, int]]:
    """Host and port of an application; it must end once it is told to.

    Args:
        app: of ASGI.
        seconds: that a request may take to arrive.
        lifespan: "off" for an application without a beginning and an end.
    """
    kinds: dict[str, Any] = {"http": bounded(seconds), "lifespan": lifespan}
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **kinds))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()
