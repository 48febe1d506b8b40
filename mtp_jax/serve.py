"""Serves a model over HTTP, in the shapes of the OpenAI audio API, with a page to try it on.

    python -m mtp_jax.serve [--model=DIR] [--host=127.0.0.1] [--port=8000]

DIR is a workdir, a folder that a model was exported to, or a Whisper; by default it is the clone's
models/whisper-base, Whisper base with heads. docs/serving.md has the requests, the
limits and the metrics. Other machines reach it with --host=0.0.0.0 and an --api_key_file. SIGTERM
or Ctrl-C ends it once what it holds is answered, and new requests are refused meanwhile; a second
Ctrl-C ends it at once.

The exit status is 0 after it was told to end, 1 if the model or the address cannot be used, 2 if
the flags are wrong.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import contextlib
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mtp_jax import cli
from mtp_jax.decoding import registry
from mtp_jax.flag_checks import check_tau, mesh_of

if TYPE_CHECKING:
    import uvicorn

_MODEL = cli.optional_model_flag()
_PRETRAINED = cli.pretrained_flag()
_SILENCE = cli.silence_flag()
_DTYPE = cli.dtype_flag()
_WEIGHTS = cli.weights_flag()
_HEADS = cli.heads_flag()
_DRAFT_MODEL = cli.draft_model_flag()
_MESH = cli.mesh_flag()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all")
_PORT = flags.DEFINE_integer("port", 8000, "0 takes a free one", lower_bound=0, upper_bound=65535)
_KEYS = flags.DEFINE_string(
    "api_key_file", None, "of keys, one a line: who sends none of them is refused"
)
_NO_KEY = flags.DEFINE_bool(
    "without_key", False, "listen beyond this machine with no key: a proxy checks who asks"
)
_ORIGINS = flags.DEFINE_list(
    "cors_origins", [], "sites whose pages may use the service, as https://app.example.org; * all"
)
_NAMES = flags.DEFINE_list(
    "names", None, "that requests may call the model; default: its folder's, and whisper-1"
)
_STRATEGY = flags.DEFINE_string("strategy", "auto", f"one of {', '.join(registry.names())}")
_TAU = flags.DEFINE_float("tau", None, "of threshold; default: the model's")
_SECONDS = flags.DEFINE_float("max_seconds", 7200.0, "of a recording", lower_bound=0.0)
_BYTES = flags.DEFINE_integer("max_bytes", 100_000_000, "of a recording", lower_bound=1)
_UPLOAD = flags.DEFINE_float(
    "upload_seconds",
    300.0,
    "for a recording to arrive, and for a client to take what is ready of its answer",
    lower_bound=0.0,
)
_QUEUE = flags.DEFINE_integer("queue", 64, "requests held at a time", lower_bound=1)
_LIVE = flags.DEFINE_integer(
    "live_sessions", 8, "live captions at a time; 0 offers none", lower_bound=0
)
_IDLE = flags.DEFINE_float("idle_seconds", 300.0, "that one may send nothing", lower_bound=1.0)
_BATCH = flags.DEFINE_integer("batch_size", 16, "chunks decoded at once", lower_bound=1)
_WAIT = flags.DEFINE_float("max_wait_ms", 5.0, "that a chunk waits for others", lower_bound=0.0)
_WARM = flags.DEFINE_list("warm", None, "strategies compiled at the start; default: --strategy")

log = logging.getLogger("mtp_jax")
_LARGEST_EVENT = 4 << 20  # bytes; 30 s of audio at 48 kHz in base64 are 3.8 MB


def main(argv: list[str]) -> int:
    cli.refuse_arguments(argv)
    warm = tuple(_WARM.value if _WARM.value is not None else [_STRATEGY.value])
    for flag, name in (("strategy", _STRATEGY.value), *(("warm", name) for name in warm)):
        if name not in registry.names():
            raise flags.Error(f"--{flag}={name} is not one of {', '.join(registry.names())}")
    check_tau(_TAU.value)
    mesh = mesh_of(_MESH.value)
    folder = cli.model_or_default(_MODEL.value)
    try:
        import uvicorn

        from mtp_jax.serving import access
        from mtp_jax.serving.app import Service, Settings
        from mtp_jax.serving.connections import bounded
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mtp_jax"):
            raise
        log.error(
            "error: the package %s is missing: pip install '.[serve]' in the project's folder",
            error.name,
        )
        return 1
    try:
        origins = access.check_origins(_ORIGINS.value)
        keys = access.read_keys(_KEYS.value) if _KEYS.value is not None else None
        family, address = access.address_of(_HOST.value)
    except access.AccessError as error:
        raise flags.Error(str(error)) from None
    if keys is not None and _NO_KEY.value:
        raise flags.Error("--without_key and --api_key_file contradict each other: give one")
    if keys is None and not _NO_KEY.value and not access.is_loopback(address):
        raise flags.Error(
            f"--host={_HOST.value} lets other machines use the service, and no key protects it:"
            " give --api_key_file=FILE (openssl rand -hex 32 > FILE makes one), or --without_key"
            " where a proxy checks who asks"
        )
    from mtp_jax.inference.model_folder import open_model_folder
    from mtp_jax.transcription.loading import load  # imported late: errors in flags come at once

    workdir = open_model_folder(folder)
    cli.start_jax(workdir.read_config())  # before anything asks for a device
    model = load(
        folder,
        batch_size=_BATCH.value,
        mesh=cli.lay_out(mesh),
        pretrained=_PRETRAINED.value,
        silence=_SILENCE.value,
        dtype=_DTYPE.value,
        heads=_HEADS.value,
        draft_model=_DRAFT_MODEL.value or "",
        weights=_WEIGHTS.value,
    )
    for name in (_STRATEGY.value, *warm):
        model.strategy(name)  # says if it is not one for this model
    name = Path(folder).expanduser().resolve().name
    settings = Settings(
        models=tuple(_NAMES.value or dict.fromkeys([name, "whisper-1"])),
        strategy=_STRATEGY.value,
        tau=_TAU.value,
        max_bytes=_BYTES.value,
        max_seconds=_SECONDS.value,
        queue=_QUEUE.value,
        upload_seconds=_UPLOAD.value,
        max_wait=_WAIT.value / 1000,
        warm=warm,
        keys=keys,
        origins=origins,
        live=_LIVE.value,
        idle_seconds=_IDLE.value,
    )
    try:
        listener = socket.create_server((address, _PORT.value), family=family, backlog=1024)
    except OSError as error:
        log.error(
            "error: %s:%d cannot be listened on (%s): choose another --host or --port",
            *(_HOST.value, _PORT.value, error.strerror or error),
        )
        return 1
    interrupts.raise_if_requested()
    with listener, interrupts.deferred():  # uvicorn ends it, once what it holds is answered
        shown = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
        log.info(
            "http://%s:%d serves %s; compiling, see /health/ready",
            *(shown, listener.getsockname()[1], name),
        )
        config = uvicorn.Config(
            Service(model, settings).app(),
            http=bounded(settings.upload_seconds),
            ws_max_size=_LARGEST_EVENT,
            log_level="warning",
        )
        _server(config).run(sockets=[listener])
    log.info("ended: all requests were answered")
    return 0


def _server(config: uvicorn.Config) -> uvicorn.Server:
    """A server that ends by the flag of `interrupts`, whenever the signal came.

    uvicorn's own handlers are in place only while it runs: a signal just before would be lost.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # of a generator
            return contextlib.nullcontext()

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or interrupts.requested() is not None

    return Server(config)


if __name__ == "__main__":
    sys.exit(cli.run(main))
