"""Events of a realtime session, in the shapes of the OpenAI realtime API for transcription.

Beyond it a session may include the hypothesis: what the open stretch says so far.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.serving.refusal import Refused

HYPOTHESIS = "item.input_audio_transcription.hypothesis"
LOGPROBS = "item.input_audio_transcription.logprobs"
_INCLUDES = (LOGPROBS, HYPOTHESIS)
_RATES = (8_000, 48_000)
_PAUSES = (200, 10_000)  # ms
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """What a client asked for.

    Attributes:
        model: its name.
        rate: Hz of the PCM that is sent.
        language, prompt: as of a request for a transcription.
        pause: ms that end an item; None leaves that to the client.
        include: of `_INCLUDES`.
    """

    model: str
    rate: int = 24_000
    language: str = ""
    prompt: str = ""
    pause: int | None = 800
    include: tuple[str, ...] = ()

    def to_json(self, identity: str) -> dict[str, Any]:
        """The session, as the API words it."""
        detection = None
        if self.pause is not None:
            detection = {"type": "server_vad", "silence_duration_ms": self.pause}
        transcription: dict[str, Any] = {"model": self.model}
        transcription |= {"language": self.language} if self.language else {}
        transcription |= {"prompt": self.prompt} if self.prompt else {}
        heard = {
            "format": {"type": "audio/pcm", "rate": self.rate},
            "transcription": transcription,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": identity,
            "audio": {"input": heard},
            "include": list(self.include),
        }


def new_id(kind: str) -> str:
    """An id that nothing else has."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """An event of the service."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def transcription_event(kind: str, item: str, **fields: Any) -> dict[str, Any]:
    """One about the transcription of an item: delta, completed, failed or hypothesis."""
    return event(f"{_TRANSCRIPTION}.{kind}", item_id=item, content_index=0, **fields)


def error_event(refused: Refused, caused_by: object = None) -> dict[str, Any]:
    """What is wrong with an event of the client, or with the service."""
    error = dict(refused.body["error"])
    error["event_id"] = caused_by if isinstance(caused_by, str) else None
    return event("error", error=error)


def read_event(text: str) -> dict[str, Any]:
    """An event of the client.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("", "an event is a JSON object, and this is none: send it as text") from None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise _wrong("type", "an event is a JSON object with a type: give it one")
    return found


def read_audio(sent: Mapping[str, Any], most: int) -> np.ndarray:
    """int16[T] of an event that brings audio.

    Raises:
        Refused: it does not, or more than `most` samples.
    """
    audio = sent.get("audio")
    if not isinstance(audio, str):
        raise _wrong("audio", "the field 'audio' is missing: it is PCM in base64")
    try:
        raw = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong("audio", "the field 'audio' is no base64: encode 16-bit PCM so") from None
    if len(raw) % 2:
        raise _wrong("audio", "the field 'audio' holds half a sample: they have 16 bits each")
    if len(raw) > 2 * most:
        raise _wrong("audio", f"an event brings {most} samples at most: send more events")
    return np.frombuffer(raw, "<i2").astype(np.int16)


def read_session(
    sent: Mapping[str, Any],
    options: SessionOptions,
    models: Sequence[str],
    languages: Sequence[str] = (),
    takes_prompt: bool = False,
) -> SessionOptions:
    """`options` with what a ``session.update`` changes; null takes a default.

    Args:
        sent: the event.
        options: so far.
        models: names that the model answers to.
        languages: codes of those that the model can be told of.
        takes_prompt: whether it can be told of earlier text.

    Raises:
        Refused: a field is wrong.
    """
    session = _object(sent, "session", "", ("type", "audio", "include"))
    if session.get("type") != "transcription":
        raise _wrong("session.type", "session.type is 'transcription': the service does not talk")
    include = session.get("include", list(options.include)) or []
    if not isinstance(include, list) or any(each not in _INCLUDES for each in include):
        raise _wrong("session.include", f"session.include may hold {', '.join(_INCLUDES)}")
    audio = _object(session, "audio", "session", ("input",))
    known = ("format", "transcription", "turn_detection", "noise_reduction")
    heard = _object(audio, "input", "session.audio", known)
    where = "session.audio.input"
    if heard.get("noise_reduction") is not None:
        raise _wrong(f"{where}.noise_reduction", "there is no noise reduction: leave it out")
    changed: dict[str, Any] = {"include": tuple(include)}
    if heard.get("format") is not None:
        changed["rate"] = _rate(heard["format"], f"{where}.format")
    if "turn_detection" in heard:
        changed["pause"] = _pause(heard["turn_detection"], f"{where}.turn_detection")
    spoken = _object(heard, "transcription", where, ("model", "language", "prompt"), open_=True)
    where = f"{where}.transcription"
    for name in ("model", "language", "prompt"):
        value = spoken.get(name)
        if value is not None and not isinstance(value, str):
            raise _wrong(f"{where}.{name}", f"{name} is text")
    if (model := spoken.get("model")) is not None:
        if model not in models:
            raise Refused(
                404,
                f"the model {model[:80]!r} does not exist: this service has {', '.join(models)}",
                f"{where}.model",
                "model_not_found",
            )
        changed["model"] = model
    if (language := spoken.get("language")) is not None:
        code = re.split("[-_]", language)[0].lower()
        if languages and code and code not in languages:
            said = f"language is {code[:20]!r}: it is one of {', '.join(languages)}"
            raise _wrong(f"{where}.language", said)
        changed["language"] = code if languages else ""
    if (prompt := spoken.get("prompt")) is not None:
        changed["prompt"] = prompt if takes_prompt else ""
    return dataclasses.replace(options, **changed)


def _object(
    holder: Mapping[str, Any], name: str, where: str, known: Sequence[str], open_: bool = False
) -> dict[str, Any]:
    """A field that is an object, empty if it is absent; `open_` lets it have fields of the API."""
    path = f"{where}.{name}" if where else name
    found = holder.get(name)
    if found is None and where:
        return {}
    if not isinstance(found, dict):
        raise _wrong(path, f"{path} is an object: give it its fields")
    unknown = [key for key in found if key not in known and not open_]
    if unknown:
        raise _wrong(
            f"{path}.{unknown[0][:40]}",
            f"{path} has no field {unknown[0][:40]!r}: it has {', '.join(known)}",
        )
    return found


def _rate(given: Any, where: str) -> int:
    kind = given.get("type", "audio/pcm") if isinstance(given, dict) else given
    if kind != "audio/pcm":
        raise _wrong(f"{where}.type", "the format is audio/pcm: 16 bits, one channel")
    rate = given.get("rate") or 24_000
    if not isinstance(rate, int) or not _RATES[0] <= rate <= _RATES[1]:
        raise _wrong(f"{where}.rate", f"the rate lies within {_RATES[0]} and {_RATES[1]} Hz")
    return rate


def _pause(given: Any, where: str) -> int | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "server_vad":
        raise _wrong(f"{where}.type", "turn_detection is server_vad, or null")
    pause = given.get("silence_duration_ms")
    if pause is None:
        return SessionOptions("").pause
    if not isinstance(pause, int) or not _PAUSES[0] <= pause <= _PAUSES[1]:
        lies = f"within {_PAUSES[0]} and {_PAUSES[1]}"
        raise _wrong(f"{where}.silence_duration_ms", f"silence_duration_ms lies {lies}")
    return pause


def _wrong(param: str, message: str) -> Refused:
    return Refused(400, message, param or None, "invalid_value")
