"""A second recogniser that drafts for the first: what it writes, in the tokens of the first.

Drafts are text, so that the two may be of any kinds: a small Whisper drafts for a large one, a
Whisper for a speech LLM. The first verifies them as it verifies a CTC hypothesis, and its text
stays the same. (Speculative decoding, Leviathan et al., 2023, with drafts of a whole text.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtp_jax.checkpoints.workdir import WorkdirError
from mtp_jax.config import Config
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.data.text import plain
from mtp_jax.decoding import Auto
from mtp_jax.distributed import multihost
from mtp_jax.inference.fallback import went_wrong
from mtp_jax.inference.start_tokens import padded_starts
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.tokenizer.whisper_tokens import TASKS, LanguageError

if TYPE_CHECKING:
    from mtp_jax.inference.runner import Runner

_SPACE = "Ġ"  # how a token of a Whisper begins that begins with a space


class DraftModel:
    """Drafts of one model for another.

    It decodes by all that it has itself to draft by, heads and a CTC head, and hears as much of a
    recording as it can at once. Of the model that it drafts for it takes over language and task,
    and no earlier text. Audio that is encoded already it does not hear.

    Args:
        runner: what drafts.
        target: the model that it drafts for.
        name: of its folder, as it was given.
    """

    def __init__(self, runner: Runner, target: Runner, name: str) -> None:
        self.name, self._runner = name, runner
        config = runner.model.config
        seconds = (config.evaluation.bucket_seconds or config.data.bucket_seconds)[-1]
        self._longest = round(seconds * config.front_end.sample_rate)
        self._strategy = Auto(config.evaluation.draft_width)
        self._most = target.model.config.data.max_tokens
        self._target = target.model.vocabulary
        self._writer = _Writer(runner, target)

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        return self._runner.compile_seconds

    def compile(self, batch: Batch) -> float:
        """Compiles what drafts for such a batch unless it is there; seconds that this took."""
        to_decode = self._own_batch(batch)
        return 0.0 if to_decode is None else self._runner.compile(to_decode, self._strategy)

    def is_compiled(self, batch: Batch) -> bool:
        """Whether `drafted` has nothing to compile for such a batch."""
        to_decode = self._own_batch(batch)
        return to_decode is None or self._runner.is_compiled(to_decode, self._strategy)

    def compile_fallback(self, batch: Batch) -> None:
        """As `Runner.compile_fallback`."""
        if (to_decode := self._own_batch(batch)) is not None:
            self._runner.compile_fallback(to_decode, self._strategy)

    def with_room(self, batch: Batch) -> Batch:
        """`batch`, with room for drafts and none there."""
        return batch.with_drafts([], self._most)

    def drafted(self, batch: Batch) -> tuple[Batch, np.ndarray]:
        """A batch with drafts.

        A text that has no end or repeats itself makes none, nor does a row whose language or task
        the drafter does not know.

        Args:
            batch: which every process has whole.

        Returns:
            It, with drafts of `config.data.max_tokens` tokens at most, and int32[B] decoder calls
            of the drafter.
        """
        to_decode = self._own_batch(batch)
        texts: list[Sequence[int]] = [()] * len(batch.index)
        if to_decode is None or np.all(to_decode.index < 0):
            return self.with_room(batch), np.zeros(len(texts), np.int32)
        done = self._runner.run(to_decode, self._strategy)
        decoded = done.decoded
        tokens, count, calls, start = multihost.to_host(
            (decoded.tokens, decoded.length, decoded.calls, done.start)
        )
        for row in np.flatnonzero(to_decode.index >= 0).tolist():
            written = tokens[row, : count[row]].tolist()
            before = [] if start is None else start[row].tolist()
            texts[row] = self._writer.draft(written, before, self._told(batch, row)[0])
        return batch.with_drafts(texts, self._most), np.asarray(calls)

    def _own_batch(self, batch: Batch) -> Batch | None:
        """The batch as the drafter takes it; rows that it does not draft for are filler."""
        if isinstance(batch, FeatureBatch):
            return None
        rows = len(batch.index)
        begin = [self._begin(*self._told(batch, row)) for row in range(rows)]
        prompts, start = self._runner.model.vocabulary.prompts, None
        if prompts is not None:
            usual = prompts.start_tokens()
            start = padded_starts([tokens or usual for tokens in begin], usual)
        drafts = np.array([tokens is not None for tokens in begin], bool)
        return Batch(
            audio=np.asarray(batch.audio)[:, : self._longest],
            audio_length=np.minimum(batch.audio_length, self._longest).astype(np.int32),
            tokens=np.zeros((rows, 0), np.int32),
            token_length=np.zeros(rows, np.int32),
            index=np.where(drafts, batch.index, -1).astype(np.int32),
            start=start,
        )

    def _told(self, batch: Batch, row: int) -> tuple[str, str]:
        """Language (its code; empty if none) and task that the text of a row is asked for in."""
        before: list[int] = [] if batch.start is None else np.asarray(batch.start)[row].tolist()
        return _language(self._target, before), _task(self._target, before)

    def _begin(self, language: str, task: str) -> tuple[int, ...] | None:
        """The drafter's own tokens before such a text; None where it cannot write one."""
        own = self._runner.model.vocabulary
        if own.prompts is None:
            return () if task == TASKS[0] else None
        knows_one = own.whisper is not None and not own.whisper.languages
        for told in (language,) if knows_one else (language, ""):
            try:
                return own.prompts.start_tokens(told, task)
            except LanguageError:
                continue
        return None


class _Writer:
    """Writes a drafter's texts as the other model would.

    Args:
        runner: the drafter.
        target: the other model.
    """

    def __init__(self, runner: Runner, target: Runner) -> None:
        self._own, self._target = runner.model.vocabulary, target.model.vocabulary
        self._reads, self._writes = runner.tokenizer, target.tokenizer
        self._limit = runner.model.config.data.max_tokens
        self._plain = target.model.config.data.text == "plain"

    def draft(self, written: list[int], before: list[int], told: str) -> list[int]:
        """The other model's tokens, without EOS; none of a text that went wrong.

        Args:
            written: by the drafter, EOS included where it was reached.
            before: its tokens before the text.
            told: the language that the other model was told; empty if none.
        """
        if went_wrong(written, self._reads, self._limit):
            return []
        end, code = self._reads.heading(written[:-1])
        text = self._text(written[end:-1])
        speech = self._target.speech
        if told or speech is None:
            return text
        # A speech LLM that was told no language writes it before the text.
        return [*dict(speech.languages).get(code or _language(self._own, before), ()), *text]

    def _text(self, written: list[int]) -> list[int]:
        """What was said; times are kept between two Whispers that write them."""
        own, target = self._own.whisper, self._target.whisper
        first = own.first_time if own else self._reads.vocab_size
        found: list[int] = []
        for is_time, run in itertools.groupby(written, lambda token: token >= first):
            if not is_time:
                found += self._cut([*run])
            elif target and target.timestamps:
                found += (target.first_time + token - first for token in run)
        return found

    def _cut(self, run: list[int]) -> list[int]:
        """Tokens between two times, in those of the other model."""
        text = self._reads.decode(run)
        text = plain(text) if self._plain else text
        # A Whisper's text begins with a space, unless its script has none.
        spaced = self._own.whisper is None or self._reads.pieces[run[0]].startswith(_SPACE)
        return self._writes.encode(f" {text}" if self._target.whisper and spaced else text)


def _language(vocabulary: Vocabulary, before: list[int]) -> str:
    """The code of the language that tokens before a text tell; empty if they tell none."""
    if (whisper := vocabulary.whisper) is not None:
        told = (code for code, token in whisper.languages if token in before)
        return next(told, "") if whisper.languages else "en"
    return vocabulary.speech.language_in(before) if vocabulary.speech and before else ""


def _task(vocabulary: Vocabulary, before: list[int]) -> str:
    whisper = vocabulary.whisper
    translates = whisper is not None and whisper.languages and whisper.translate in before
    return TASKS[1] if translates else TASKS[0]


def check_drafter(config: Config, drafter: Config, name: str) -> None:
    """Refuses a drafter that does not hear what the other model hears.

    Args:
        config: of the other model.
        drafter: of the drafter.
        name: of its folder, for the message.

    Raises:
        WorkdirError: it takes waveforms of another rate.
    """
    ours, theirs = (c.front_end.sample_rate for c in (config, drafter))
    if ours != theirs:
        raise WorkdirError(
            f"the draft model {name} hears audio at {theirs} Hz, and the model that it is to draft"
            f" for at {ours} Hz: choose one of the same rate"
        )
