"""The fields of a request for a transcription, checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from starlette.datastructures import FormData, UploadFile

from mtp_jax.serving.refusal import Refused

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("segment", "word")
INCLUDES = ("logprobs", "blocks")
LISTS = {"timestamp_granularities": GRANULARITIES, "include": INCLUDES}
# Fields of the OpenAI API that change nothing: nothing is sampled.
IGNORED = ("chunking_strategy", "temperature")
FIELDS = (
    *("file", "model", "response_format", "stream", "strategy", "tau", "language"),
    "prompt",
    *(f"{name}[]" for name in LISTS),
    *IGNORED,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        file: the recording.
        format: one of `FORMATS`.
        granularities: of `GRANULARITIES`; of verbose_json.
        include: of `INCLUDES`.
        stream: as server-sent events.
        strategy: name; `tau`: its own if None.
        language: code, or empty; `prompt`: text, or empty. Models that know one language do without
            either.
    """

    file: UploadFile
    format: str
    granularities: tuple[str, ...]
    include: tuple[str, ...]
    stream: bool
    strategy: str
    tau: float | None
    language: str = ""
    prompt: str = ""


def read_options(
    form: FormData,
    models: Sequence[str],
    strategies: Sequence[str],
    strategy: str,
    tau: float | None,
    languages: Sequence[str] = (),
    takes_prompt: bool = False,
) -> Options:
    """The options of a form.

    Args:
        form: of the request.
        models: names that the model answers to.
        strategies: that it can be decoded with.
        strategy, tau: where the request names none.
        languages: codes of those that the model can be told of.
        takes_prompt: whether it can be told of earlier text.

    Raises:
        Refused: a field is wrong.
    """
    for name in form:
        if name not in FIELDS and name not in LISTS:
            raise _wrong(
                name[:40], f"the field {name[:40]!r} is unknown: it may be {', '.join(FIELDS)}"
            )
    files = form.getlist("file")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise _wrong("file", "a request holds one file, the recording, in its field 'file'")
    model = _text(form, "model")
    if model and model not in models:
        raise Refused(
            404,
            f"the model {model[:80]!r} does not exist: this service has {', '.join(models)}",
            "model",
            "model_not_found",
        )
    kind = _one_of(form, "response_format", FORMATS) or "json"
    stream = _one_of(form, "stream", ("true", "false", "True", "False", "1", "0"))
    streamed = stream in ("true", "True", "1")
    if streamed and kind in ("text", "srt", "vtt"):
        raise _wrong(
            "response_format",
            f"stream=true sends events, which response_format={kind} has none of: leave one out",
        )
    lists = {name: _list(form, name, known) for name, known in LISTS.items()}
    granularities = lists["timestamp_granularities"]
    if granularities and kind != "verbose_json":
        raise _wrong(
            "timestamp_granularities", "timestamp_granularities need response_format=verbose_json"
        )
    temperature = _number(form, "temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        raise _wrong("temperature", f"temperature is {temperature:g}: it lies within 0 and 1")
    language = _text(form, "language")
    if language and not re.fullmatch(r"[A-Za-z]{2,20}([-_][A-Za-z]{2,8})?", language):
        raise _wrong("language", f"language is {language[:40]!r}: give a code such as 'en'")
    code = re.split("[-_]", language or "")[0].lower()
    if languages and code and code not in languages:
        raise _wrong("language", f"language is {code!r}: it is one of {', '.join(languages)}")
    wanted = _one_of(form, "strategy", strategies)
    own = _number(form, "tau")
    if own is not None and not 0 < own <= 1:
        raise _wrong("tau", f"tau is {own:g}: it is a probability above 0, and at most 1")
    return Options(
        file=files[0],
        format=kind,
        granularities=granularities or ("segment",),
        include=lists["include"],
        stream=streamed,
        strategy=wanted or strategy,
        tau=own if own is not None else tau,
        language=code if languages else "",
        prompt=(_text(form, "prompt") or "") if takes_prompt else "",
    )


def _wrong(param: str, message: str) -> Refused:
    return Refused(400, message, param, "invalid_value")


def _text(form: FormData, name: str) -> str | None:
    values = form.getlist(name)
    if len(values) > 1 or any(not isinstance(value, str) for value in values):
        raise _wrong(name, f"the field {name!r} is given once, as text")
    return str(values[0]) if values and values[0] else None


def _one_of(form: FormData, name: str, known: Sequence[str]) -> str | None:
    value = _text(form, name)
    if value is not None and value not in known:
        raise _wrong(name, f"{name} is {value[:40]!r}: it is one of {', '.join(known)}")
    return value


def _number(form: FormData, name: str) -> float | None:
    value = _text(form, name)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(name, f"{name} is {value[:40]!r}: it is a number")
    return number


def _list(form: FormData, name: str, known: Sequence[str]) -> tuple[str, ...]:
    given = [*form.getlist(name), *form.getlist(f"{name}[]")]
    values = [value for value in given if value != ""]  # an empty field is an absent one
    for value in values:
        if value not in known:
            shown = repr(value[:40]) if isinstance(value, str) else "a file"
            raise _wrong(name, f"{name} holds {shown}: it may hold {', '.join(known)}")
    return tuple(str(value) for value in values)
