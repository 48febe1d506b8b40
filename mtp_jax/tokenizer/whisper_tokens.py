"""The special tokens of a Whisper, and the tokens that its text begins with."""

from __future__ import annotations

import dataclasses

NO_TOKEN = -1  # in an array of start tokens: padding
DETECTED = -2  # in such an array: the language that the model hears
TASKS = ("transcribe", "translate")


class LanguageError(ValueError):
    """A language or a task that a model does not have."""


@dataclasses.dataclass(frozen=True)
class WhisperTokens:
    """Special tokens and rules of decoding (Radford et al., 2022, section 2.3).

    Attributes:
        start: ``<|startoftranscript|>``.
        previous: ``<|startofprev|>``, before the text of what was said earlier.
        no_timestamps: ``<|notimestamps|>``, which a text without timestamps begins with.
        no_speech: ``<|nospeech|>`` (``<|nocaptions|>`` in older files).
        languages: code and token of each; empty in a model that knows English alone.
        transcribe, translate: tokens of the tasks; -1 in a model that knows English alone.
        suppressed: tokens that a text never holds; `suppressed_first`: that it never begins with.
        latest_beginning: with timestamps, the last time that a text may begin at, in steps of
            0.02 s.
        timestamps: whether texts hold the times of their phrases
            (`config.whisper_decoder.timestamps`).
    """

    start: int
    previous: int
    no_timestamps: int
    no_speech: int
    languages: tuple[tuple[str, int], ...] = ()
    transcribe: int = -1
    translate: int = -1
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    latest_beginning: int = 50
    timestamps: bool = False

    @property
    def first_time(self) -> int:
        """The token of the time 0.00; those behind it are of the times that follow."""
        return self.no_timestamps + 1

    def start_tokens(
        self, language: str = "", task: str = "transcribe", earlier: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """The tokens before a text.

        Args:
            language: its code; empty lets the model detect it (`DETECTED`).
            task: one of `TASKS`; a translation is into English.
            earlier: tokens of what was said before, or of words that are to be expected.

        Raises:
            LanguageError: the model has no such language or task.
        """
        before = (self.previous, *earlier) if earlier else ()
        kind = () if self.timestamps else (self.no_timestamps,)
        if task not in TASKS:
            raise LanguageError(f"task {task!r} is not one of {', '.join(TASKS)}")
        if not self.languages:
            if task != "transcribe" or language not in ("", "en"):
                raise LanguageError(
                    f"the model transcribes English only, and cannot {task}"
                    f" {language or 'other languages'}: choose a multilingual one"
                )
            return (*before, self.start, *kind)
        known = dict(self.languages)
        if language and language not in known:
            raise LanguageError(
                f"language {language!r} is none that the model knows: {', '.join(sorted(known))}"
            )
        chosen = known[language] if language else DETECTED
        work = self.transcribe if task == "transcribe" else self.translate
        return (*before, self.start, chosen, work, *kind)
