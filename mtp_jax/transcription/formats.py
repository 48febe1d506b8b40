"""Transcripts as files: plain text, JSON, and subtitles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mtp_jax.transcription.results import Transcript, Word

FORMATS = ("txt", "json", "srt", "vtt")

# Subtitles as broadcasters have them: two lines, no longer than can be read, gone in a pause.
_LINE = 42  # characters
_LINES = 2
_LONGEST = 7.0  # s
_GAP = 1.0  # s
_MARKS = tuple(".,;:?!…。、？！，")
_QUOTES = "\"')]»”’"


def formatted(transcript: Transcript, kind: str) -> str:
    """A transcript in one of `FORMATS`, ending in a newline.

    ``srt`` is SubRip, ``vtt`` is WebVTT (https://www.w3.org/TR/webvtt1/); ``txt`` has one line a
    segment.
    """
    if kind == "txt":
        return "".join(f"{s.text}\n" for s in transcript.segments if s.words) or "\n"
    if kind == "json":
        return json.dumps(transcript.to_json(), ensure_ascii=False, indent=1) + "\n"
    cues = enumerate(_cues(transcript), start=1)
    if kind == "srt":
        return "".join(
            f"{i}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"
            for i, (start, end, text) in cues
        )
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text.translate(escape)}\n\n"
        for _, (start, end, text) in cues
    )


def _cues(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """Start, end and text of each subtitle."""
    for segment in transcript.segments:
        cue: list[Word] = []
        for word in segment.words:
            while stop := _stop(cue, word):
                yield cue[0].start, cue[stop - 1].end, "\n".join(_wrapped(cue[:stop]))
                cue = cue[stop:]
            cue.append(word)
        if cue:
            yield cue[0].start, cue[-1].end, "\n".join(_wrapped(cue))


def _stop(cue: Sequence[Word], word: Word) -> int:
    """How many words of a subtitle are shown before `word` can be added; 0 if it can be.

    All before a pause. A full one ends behind its last punctuation mark, as single words left over
    of a sentence read badly; behind its last word where that would leave less than a third of it.
    """
    if not cue:
        return 0
    if word.start - cue[-1].end > _GAP:
        return len(cue)
    if len(_wrapped([*cue, word])) <= _LINES and word.end - cue[0].start <= _LONGEST:
        return 0
    for stop in range(len(cue), len(cue) // 3, -1):
        if cue[stop - 1].text.rstrip(_QUOTES).endswith(_MARKS):
            return stop
    return len(cue)


def _wrapped(words: Sequence[Word]) -> list[str]:
    """Lines of at most `_LINE` characters; a longer word has one of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word.text) <= _LINE:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"
