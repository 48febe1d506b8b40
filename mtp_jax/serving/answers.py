"""Transcripts in the shapes of the OpenAI audio API.

Beyond it, verbose_json tells decoder calls, the JSON formats tell what could not be read of the
recording, and ``include[]=blocks`` has streamed deltas tell what each of the calls emitted, and
when each word was said.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse, Response

from mtp_jax.serving.options import Options
from mtp_jax.transcription.formats import formatted
from mtp_jax.transcription.results import Segment, Token, Transcript, Word

_MEDIA = {"text": "text/plain", "srt": "text/plain", "vtt": "text/vtt"}
_LEAST = 1e-30  # probability; logarithms stay finite


def answer(
    transcript: Transcript, options: Options, language: str, task: str = "transcribe"
) -> Response:
    """A transcript, as the request wants it."""
    if options.format == "text":
        text = f"{transcript.text}\n"
    elif options.format in ("srt", "vtt"):
        text = formatted(transcript, options.format)
    elif options.format == "json":
        return JSONResponse(_plain(transcript, options))
    else:
        return JSONResponse(_verbose(transcript, options, language, task))
    return Response(text, media_type=_MEDIA[options.format])


def delta(segment: Segment, first: bool, options: Options) -> dict[str, Any]:
    """The event that a segment is; `first` of those with words."""
    text = segment.text if first or not segment.words else f" {segment.text}"
    found: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
    if "logprobs" in options.include:
        found["logprobs"] = logprobs(segment.tokens)
    if "blocks" in options.include:
        found |= {
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "decoder_calls": segment.decoder_calls,
            **_drafter_calls(segment),
            "blocks": _blocks(segment),
            "words": _words(segment.words),
        }
    return found


def done(transcript: Transcript, options: Options) -> dict[str, Any]:
    """The event that ends a stream."""
    found: dict[str, Any] = {"type": "transcript.text.done", "text": transcript.text}
    if "logprobs" in options.include:
        found["logprobs"] = logprobs(transcript.tokens)
    if transcript.warnings:
        found["warnings"] = list(transcript.warnings)
    if "blocks" in options.include:
        found |= {
            "strategy": transcript.strategy,
            "duration": round(transcript.audio_seconds, 3),
            "decode_seconds": round(transcript.decode_seconds, 3),
            "decoder_calls": transcript.decoder_calls,
            **_drafter_calls(transcript),
            "tokens": len(transcript.tokens),
        }
        if transcript.language:
            found["language"] = transcript.language
    return found


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _plain(transcript: Transcript, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {"text": transcript.text, "usage": _usage(transcript)}
    if "logprobs" in options.include:
        found["logprobs"] = logprobs(transcript.tokens)
    if transcript.warnings:
        found["warnings"] = list(transcript.warnings)
    return found


def _verbose(transcript: Transcript, options: Options, language: str, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": task,
        "language": transcript.language or language,
        "duration": round(transcript.audio_seconds, 3),
        "text": transcript.text,
        "usage": _usage(transcript),
        "strategy": transcript.strategy,
        "decoder_calls": transcript.decoder_calls,
        **_drafter_calls(transcript),
        "warnings": list(transcript.warnings),
    }
    if "word" in options.granularities:
        found["words"] = _words(transcript.words)
    if "segment" in options.granularities:
        said = [segment for segment in transcript.segments if segment.words]
        found["segments"] = [_segment(i, segment) for i, segment in enumerate(said)]
    return found


def _words(words: Iterable[Word]) -> list[dict[str, Any]]:
    return [
        {
            "word": word.text,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in words
    ]


def _segment(place: int, segment: Segment) -> dict[str, Any]:
    text = segment.text.encode()
    logs = [_log(token.confidence) for token in segment.tokens]
    return {
        "id": place,
        "seek": 0,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": f" {segment.text}",
        "tokens": [token.id for token in segment.tokens],
        "temperature": 0.0,
        "avg_logprob": round(sum(logs) / max(len(logs), 1), 4),
        "compression_ratio": round(len(text) / max(len(zlib.compress(text)), 1), 3),
        "no_speech_prob": 0.0,  # what is silent was cut out
        "decoder_calls": segment.decoder_calls,
        **_drafter_calls(segment),
    }


def _drafter_calls(found: Segment | Transcript) -> dict[str, int]:
    """Only where another model drafted."""
    return {"drafter_calls": found.drafter_calls} if found.drafter_calls else {}


def _blocks(segment: Segment) -> list[dict[str, Any]]:
    """What each decoder call emitted; an empty text is EOS."""
    by_call: dict[int, list[Token]] = {}
    for token in segment.tokens:
        by_call.setdefault(token.call, []).append(token)
    return [
        {
            "call": call,
            "tokens": [
                {
                    "text": token.text,
                    "confidence": round(token.confidence, 4),
                    "end": token.word < 0,
                }
                for token in tokens
            ],
        }
        for call, tokens in sorted(by_call.items())
    ]


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(transcript.audio_seconds, 3)}


def logprobs(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """Of each token but EOS, as the API words them."""
    return [
        {
            "token": token.text,
            "logprob": round(_log(token.confidence), 5),
            "bytes": list(token.text.encode()),
        }
        for token in tokens
        if token.word >= 0
    ]


def _log(probability: float) -> float:
    return math.log(max(probability, _LEAST))
