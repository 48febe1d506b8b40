"""Live captions over a WebSocket, in the shape of the OpenAI realtime API for transcription.

One task reads the client's events, another sends what happens. Where decoding does not keep up the
client's events are left unread, so that what is held is bounded and its sender waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import soxr
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mtp_jax.audio.live_segmentation import LiveSegmenter
from mtp_jax.serving.answers import logprobs
from mtp_jax.serving.engine import Stopped
from mtp_jax.serving.job import Cancelled
from mtp_jax.serving.live_job import LiveJob
from mtp_jax.serving.realtime_events import (
    HYPOTHESIS,
    LOGPROBS,
    SessionOptions,
    error_event,
    event,
    new_id,
    read_audio,
    read_event,
    read_session,
    transcription_event,
)
from mtp_jax.serving.refusal import Refused
from mtp_jax.serving.start_tokens import start_tokens
from mtp_jax.tokenizer.whisper_tokens import TASKS
from mtp_jax.transcription.live_events import Caption, Ended, LiveEvent, Started, joined
from mtp_jax.transcription.live_model import live_fields, live_segmenter
from mtp_jax.transcription.results import Transcript

if TYPE_CHECKING:
    from mtp_jax.serving.app import Service

SUBPROTOCOL = "realtime"
_BEHIND = 2  # stretches that may be over and not settled before the client waits
_UNREAD = 100  # events that a client may leave unread before it is not listened to
_EVENT_SECONDS = 30.0  # of audio in an event, at most
_LEAST = 0.1  # s of audio that a commit needs
_REFUSED, _TOO_LONG, _SHUT_DOWN = 1008, 1009, 1012  # codes of a close

log = logging.getLogger("mtp_jax")


async def realtime(service: Service, socket: WebSocket) -> None:
    """GET /v1/realtime, upgraded: one client's session from its first event to its last."""
    try:
        model = socket.query_params.get("model", "") or service.settings.models[0]
        if model not in service.settings.models:
            there = ", ".join(service.settings.models)
            message = f"the model {model[:80]!r} does not exist: this service has {there}"
            raise Refused(404, message, "model", "model_not_found")
        service.admit_live()
    except Refused as refused:
        service.metrics.requests.labels(str(refused.status)).inc()
        await socket.send_denial_response(refused.response())
        return
    try:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        await _Client(service, socket, SessionOptions(model)).serve()
    finally:
        service.release_live()
        service.metrics.requests.labels("101").inc()


class _AudioInput:
    """What takes a session's audio, from its first samples.

    Attributes:
        job: whose captions they become.
        segmenter: of stretches.
        samples: since the last commit, at the client's rate.
    """

    def __init__(self, job: LiveJob, segmenter: LiveSegmenter, rate: int) -> None:
        self.job, self.segmenter, self.rate = job, segmenter, rate
        self.samples = 0
        self._resampler = self._fresh()

    def _fresh(self) -> soxr.ResampleStream | None:
        if self.rate == self.segmenter.rate:
            return None
        return soxr.ResampleStream(self.rate, self.segmenter.rate, 1, dtype="int16")

    def resampled(self, samples: np.ndarray) -> np.ndarray:
        """In the model's rate; the last few come with what follows."""
        return self._resampler.resample_chunk(samples) if self._resampler else samples

    def rest(self) -> np.ndarray:
        """What is still to come of all before."""
        if not self._resampler:
            return np.zeros(0, np.int16)
        rest = self._resampler.resample_chunk(np.zeros(0, np.int16), last=True)
        self._resampler = self._fresh()
        return rest


class _Client:
    """One client.

    Args:
        service: what serves it.
        socket: accepted.
        options: what it gets unless it asks for something else.
    """

    def __init__(self, service: Service, socket: WebSocket, options: SessionOptions) -> None:
        self._service, self._socket, self._options = service, socket, options
        self._id = new_id("sess")
        self._happened: asyncio.Queue[LiveEvent] = asyncio.Queue()
        self._settled = asyncio.Event()  # something was
        self._input: _AudioInput | None = None
        self._items: dict[int, str] = {}  # of stretches that are not settled
        self._sent: dict[int, str] = {}  # deltas of each, joined
        self._last: str | None = None  # item that was committed last

    async def serve(self) -> None:
        """Until the client or the service goes."""
        try:
            await self._send(event("session.created", session=self._options.to_json(self._id)))
            async with anyio.create_task_group() as tasks:
                for work in (self._notify, self._read):
                    tasks.start_soon(self._until_gone, work, tasks.cancel_scope)
        finally:
            if self._input:
                self._service.engine.cancel(self._input.job)
                self._input.segmenter.__exit__()

    async def _until_gone(
        self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope
    ) -> None:
        """Works, and has the other task end too."""
        try:
            await work()
        except (WebSocketDisconnect, RuntimeError):
            # Starlette raises a RuntimeError where the other side is gone as something is sent.
            if not self._is_gone():
                raise
        scope.cancel()

    def _is_gone(self) -> bool:
        states = self._socket.client_state, self._socket.application_state
        return WebSocketState.DISCONNECTED in states

    async def _send(self, content: dict[str, Any]) -> None:
        await self._socket.send_json(content)

    async def _close(self, code: int) -> None:
        with contextlib.suppress(RuntimeError):
            await self._socket.close(code)

    # ---- What the client sends

    async def _read(self) -> None:
        """Answers its events, one by one."""
        while True:
            try:
                with anyio.fail_after(self._service.settings.idle_seconds):
                    message = await self._socket.receive()
            except TimeoutError:
                idle = self._service.settings.idle_seconds
                said = f"nothing was sent for {idle:g} s: the session is closed"
                await self._send(error_event(Refused(408, said, code="session_idle")))
                return await self._close(_REFUSED)
            if message["type"] == "websocket.disconnect":
                return None
            sent: dict[str, Any] = {}
            try:
                sent = read_event(message.get("text") or "")
                await self._answer(sent)
            except Refused as refused:
                await self._send(error_event(refused, sent.get("event_id")))
                if refused.status == 413:
                    return await self._close(_TOO_LONG)
            await self._keep_up()

    async def _answer(self, sent: dict[str, Any]) -> None:
        match sent["type"]:
            case "session.update":
                await self._update(sent)
            case "input_audio_buffer.append":
                await self._append(sent)
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._clear()
            case other:
                raise Refused(
                    400,
                    f"the event {other[:60]!r} is unknown: a transcription session takes"
                    " session.update and input_audio_buffer.append, .commit and .clear",
                    "type",
                    "invalid_value",
                )

    async def _update(self, sent: dict[str, Any]) -> None:
        model = self._service.model
        names = self._service.settings.models
        options = read_session(sent, self._options, names, model.languages, model.takes_prompt)
        start_tokens(model, options.language, TASKS[0], options.prompt)  # refused at once
        before = dataclasses.replace(self._options, include=options.include)
        if self._input and options != before:
            raise Refused(
                400,
                "format, language, prompt and turn detection are settled before the first audio:"
                " open another session",
                "session",
                "invalid_value",
            )
        self._options = options
        await self._send(event("session.updated", session=options.to_json(self._id)))

    async def _append(self, sent: dict[str, Any]) -> None:
        samples = read_audio(sent, int(_EVENT_SECONDS * self._options.rate))
        source = self._input or await self._begin()
        source.samples += len(samples)
        longest = self._service.settings.max_seconds
        if source.segmenter.seconds + len(samples) / source.rate > longest:
            raise Refused(
                413,
                f"the session is longer than {longest:g} s: open another",
                "audio",
                "audio_too_long",
            )
        resampled = source.resampled(samples)
        ended = await run_in_threadpool(source.segmenter.feed, resampled)
        open_, seconds = source.segmenter.open(), source.segmenter.seconds
        self._change(lambda: source.job.update(ended, open_, seconds))

    async def _begin(self) -> _AudioInput:
        """Makes what hears: options are settled from here on."""
        service, options = self._service, self._options
        model, strategy = service.model, service.settings.strategy
        fields = live_fields(model, strategy, language=options.language, prompt=options.prompt)
        loop = asyncio.get_running_loop()

        def emit(happened: LiveEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self._happened.put_nowait, happened)

        decoder = model.strategy(strategy, service.settings.tau)
        pause = math.inf if options.pause is None else options.pause / 1000
        segmenter = await run_in_threadpool(live_segmenter, model, pause)
        job = service.engine.submit_live(lambda: LiveJob(decoder, emit=emit, **fields))
        self._input = _AudioInput(job, segmenter, options.rate)
        return self._input

    async def _commit(self) -> None:
        source = self._input
        if source is None or source.samples < _LEAST * source.rate:
            raise Refused(
                400,
                f"there is less than {1000 * _LEAST:g} ms of audio to commit: append some",
                code="input_audio_buffer_commit_empty",
            )
        source.samples = 0
        before = await run_in_threadpool(source.segmenter.feed, source.rest())
        ended = [*before, *await run_in_threadpool(source.segmenter.finish)]
        seconds = source.segmenter.seconds
        self._change(lambda: source.job.update(ended, None, seconds))
        if not ended:  # nobody speaks in it: an item without a text
            item = new_id("item")
            await self._committed(item)
            await self._completed(item, "", 0.0)

    async def _clear(self) -> None:
        if source := self._input:
            source.samples = 0
            source.rest()
            await run_in_threadpool(source.segmenter.clear)
            seconds = source.segmenter.seconds
            self._change(lambda: source.job.clear(seconds))
        await self._send(event("input_audio_buffer.cleared"))

    def _change(self, how: Any) -> None:
        assert self._input
        self._service.engine.change(self._input.job, how)

    async def _keep_up(self) -> None:
        """Waits while too much is to be decoded, or was decoded and is not read by the client."""
        while self._input and not self._input.job.over:
            if self._input.job.behind <= _BEHIND and self._happened.qsize() <= _UNREAD:
                return
            self._settled.clear()
            with anyio.move_on_after(1.0):
                await self._settled.wait()

    # ---- What is sent to it

    async def _notify(self) -> None:
        while True:
            happened = await self._happened.get()
            self._settled.set()
            async for content in self._events(happened):
                await self._send(content)
            if isinstance(happened, Exception):
                return await self._close(_SHUT_DOWN)

    async def _events(self, happened: LiveEvent) -> AsyncIterator[dict[str, Any]]:
        """The events that something which happened becomes."""
        if isinstance(happened, Started):
            self._items[happened.number] = new_id("item")
            at, item = round(1000 * happened.at), self._items[happened.number]
            yield event("input_audio_buffer.speech_started", item_id=item, audio_start_ms=at)
        elif isinstance(happened, Ended):
            item = self._items[happened.number]
            at = round(1000 * happened.at)
            yield event("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=at)
            yield self._committed_event(item)
        elif isinstance(happened, Caption):
            for content in self._of_caption(happened):
                yield content
        elif isinstance(happened, Exception):
            yield error_event(_sentence(happened))
        else:
            assert isinstance(happened, Transcript)

    def _of_caption(self, caption: Caption) -> list[dict[str, Any]]:
        item = self._items[caption.number]
        sent, words = self._sent.get(caption.number, ""), joined(caption.committed)
        found = []
        if len(words) > len(sent) and words.startswith(sent):
            self._sent[caption.number] = words
            found.append(transcription_event("delta", item, delta=words[len(sent) :]))
        if not caption.final:
            if HYPOTHESIS in self._options.include:
                found.append(_hypothesis(item, caption))
            return found
        del self._items[caption.number]
        self._sent.pop(caption.number, None)
        return [*found, self._completed_event(item, words, caption)]

    def _committed_event(self, item: str) -> dict[str, Any]:
        before, self._last = self._last, item
        return event("input_audio_buffer.committed", item_id=item, previous_item_id=before)

    async def _committed(self, item: str) -> None:
        await self._send(self._committed_event(item))

    async def _completed(self, item: str, text: str, seconds: float) -> None:
        usage = {"type": "duration", "seconds": seconds}
        await self._send(transcription_event("completed", item, transcript=text, usage=usage))

    def _completed_event(self, item: str, text: str, caption: Caption) -> dict[str, Any]:
        seconds = caption.audio_end - caption.start
        fields: dict[str, Any] = {"transcript": text}
        fields["usage"] = {"type": "duration", "seconds": round(seconds, 3)}
        if LOGPROBS in self._options.include:
            tokens = [token for segment in caption.segments for token in segment.tokens]
            fields["logprobs"] = logprobs(tokens)
        if HYPOTHESIS in self._options.include:
            fields |= {"decoder_calls": caption.calls, "tokens": caption.tokens}
        return transcription_event("completed", item, **fields)


def _hypothesis(item: str, caption: Caption) -> dict[str, Any]:
    return transcription_event(
        "hypothesis",
        item,
        committed=joined(caption.committed),
        open=joined(caption.open),
        audio_end_ms=round(1000 * caption.audio_end),
        decoder_calls=caption.calls,
        tokens=caption.tokens,
    )


def _sentence(error: Exception) -> Refused:
    if isinstance(error, (Stopped, Cancelled)):
        return Refused(503, "the service decodes nothing any more: open a session anew")
    return Refused(500, "the audio could not be decoded: the log of the service says why")
