"""What the service tells Prometheus."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mtp_jax.decoding import registry
from mtp_jax.transcription.results import Segment

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter(
            "mtp_requests", "Requests for a transcription that were answered", "status"
        )
        self.latency = self._histogram(
            "mtp_request_seconds",
            "From the first byte of a request to the last of its answer, where it was transcribed",
            _SECONDS,
        )
        self.held = self._gauge("mtp_requests_held", "Requests under way")
        self.live = self._gauge("mtp_live_sessions", "Sessions of live captions under way")
        self._chunks = self._gauge("mtp_chunks_waiting", "Chunks of audio that wait for a batch")
        self._batch = self._histogram("mtp_batch_chunks", "Chunks of audio in a batch", _SIZES)
        self._counts = {
            "calls": self._counter("mtp_decoder_calls", "Decoder calls", "strategy"),
            "drafter": self._counter(
                "mtp_drafter_calls", "Decoder calls of the model that drafts", "strategy"
            ),
            "tokens": self._counter("mtp_tokens", "Tokens decoded, EOS included", "strategy"),
            "proposed": self._counter(
                "mtp_drafts_proposed", "Drafts of heads 2..M put to the test", "strategy"
            ),
            "accepted": self._counter("mtp_drafts_accepted", "Drafts that passed", "strategy"),
        }
        self._audio = self._counter("mtp_audio_seconds", "Audio decoded")
        self._decode = self._counter("mtp_decode_seconds", "Wall clock of decoding it")
        self._total = dict.fromkeys([*self._counts, "audio", "decode"], 0.0)
        for name, what, above, below in (
            ("mtp_calls_per_token", "Decoder calls a token", "calls", "tokens"),
            ("mtp_acceptance", "Share of drafts that passed", "accepted", "proposed"),
            ("mtp_rtfx", "Seconds of audio decoded a second", "audio", "decode"),
        ):
            ratio = functools.partial(self._ratio, above, below)
            self._gauge(name, f"{what}, since the start").set_function(ratio)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, registry=self._registry)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, what, buckets=buckets, registry=self._registry)

    def _ratio(self, above: str, below: str) -> float:
        return self._total[above] / self._total[below] if self._total[below] else 0.0

    def watch_chunks(self, count: Callable[[], int]) -> None:
        """`count` says how many chunks wait."""
        self._chunks.set_function(count)

    def decoded(
        self, strategy: str, segments: Sequence[Segment], audio: float, seconds: float
    ) -> None:
        """A batch was.

        Args:
            strategy: its name.
            segments: of the batch.
            audio: s of the batch; `seconds`: that it took.
        """
        counts = {
            "calls": sum(s.decoder_calls for s in segments),
            "drafter": sum(s.drafter_calls for s in segments),
            "tokens": sum(len(s.tokens) for s in segments),
            "proposed": sum(s.proposed for s in segments),
            "accepted": sum(s.accepted for s in segments),
        }
        for name, count in counts.items():
            self._counts[name].labels(strategy).inc(count)
            if registry.get(strategy).calls_decoder:
                self._total[name] += count
        self._batch.observe(len(segments))
        self._audio.inc(audio)
        self._decode.inc(seconds)
        self._total["audio"] += audio
        self._total["decode"] += seconds

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
