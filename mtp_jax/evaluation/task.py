"""A data set to decode: utterances in batches, longer recordings in chunks as in transcribing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator

import jax
import numpy as np

from mtp_jax.audio.reading import AudioError
from mtp_jax.data import Batch, Problem, Source, Utterance, eval_batches
from mtp_jax.decoding import Strategy
from mtp_jax.evaluation.outcome import Hypothesis, Outcome, decode_source
from mtp_jax.inference.runner import Runner
from mtp_jax.transcription.results import Transcript
from mtp_jax.transcription.transcriber import Transcriber

log = logging.getLogger("mtp_jax")


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set to decode, in batches of any size.

    Attributes:
        source: the utterances that fit into a bucket.
        batches: makes their batches, given a batch size.
        long: the recordings that do not, if there are any; they are decoded in chunks.
        problems: what cannot be decoded.
        counts_left_out: words of what was not decoded count as deleted.
    """

    source: Source
    batches: Callable[[int], Iterator[Batch]]
    long: Source | None = None
    problems: tuple[Problem, ...] = ()
    counts_left_out: bool = False

    @classmethod
    def of(cls, source: Source, runner: Runner, counts_left_out: bool = False) -> Task:
        """The whole of `source`."""
        config, tokenizer = runner.model.config, runner.tokenizer
        longest = (config.evaluation.bucket_seconds or config.data.bucket_seconds)[-1]
        fits = np.array([u.seconds <= longest for u in source.utterances], bool)
        short = source if fits.all() else source.subset(np.flatnonzero(fits).tolist())
        long = None if fits.all() else source.subset(np.flatnonzero(~fits).tolist())
        problems = list(source.problems)
        if long and jax.process_count() > 1:
            problems += [_too_long(utterance) for utterance in long.utterances]
            long = None

        def batches(size: int) -> Iterator[Batch]:
            return iter(eval_batches(short, tokenizer, config, size) if short.utterances else ())

        return cls(short, batches, long, tuple(problems), counts_left_out)

    @property
    def utterances(self) -> list[Utterance]:
        """All that are to be decoded; the long ones last."""
        return [*self.source.utterances, *(self.long.utterances if self.long else ())]

    def decode(self, runner: Runner, strategy: Strategy, size: int) -> Outcome:
        """What the strategy makes of all of it, in batches of `size`."""
        outcome = decode_source(runner, self.source, self.batches(size), strategy)
        if self.long:
            outcome = outcome.followed_by(decode_long(runner, self.long, strategy, size))
        missing = self.left_out(outcome) if self.counts_left_out else ()
        texts = tuple(problem.text for problem in missing if problem.text)
        return dataclasses.replace(outcome, batch_size=size, missing=texts)

    def left_out(self, outcome: Outcome) -> list[Problem]:
        """What is not in `outcome`, each with its reason."""
        decoded = {hypothesis.id for hypothesis in outcome.hypotheses}
        lost = [u for u in self.utterances if u.id not in decoded]
        return [*self.problems, *(Problem(u.id, "unreadable audio", "", u.text) for u in lost)]


def _too_long(utterance: Utterance) -> Problem:
    detail = "several processes decode no recordings in chunks: evaluate with one"
    return Problem(utterance.id, "too long", detail, utterance.text)


def decode_long(runner: Runner, source: Source, strategy: Strategy, size: int) -> Outcome:
    """Decodes recordings of any length as `Transcriber` does.

    Calls and tokens are sums over chunks; loop steps and the acceptance by head are not counted.

    Args:
        runner: the model.
        source: the recordings.
        strategy: what decodes.
        size: chunks in a batch, at most.
    """
    rate = runner.model.config.front_end.sample_rate

    def waveforms() -> Iterator[tuple[int, np.ndarray]]:
        for i, utterance in enumerate(source.utterances):
            try:
                yield i, source.waveform(i)
            except AudioError as error:
                log.warning("%s is skipped: %s", utterance.id, error)

    compiled_before = runner.compile_seconds
    found = dict(
        Transcriber(runner, batch_size=size).transcribe_all(
            waveforms(), rate=rate, strategy=strategy
        )
    )
    made = {i: t for i, t in sorted(found.items()) if isinstance(t, Transcript)}
    return Outcome(
        hypotheses=tuple(_hypothesis(source.utterances[i], t) for i, t in made.items()),
        proposed=np.zeros(1, int),
        accepted=np.zeros(1, int),
        loop_steps=0,
        at_length_limit=sum(not all(s.complete for s in t.segments) for t in made.values()),
        audio_seconds=sum(t.audio_seconds for t in made.values()),
        wall_seconds=sum(t.decode_seconds for t in made.values()),
        compile_seconds=runner.compile_seconds - compiled_before,
        batch_size=size,
    )


def _hypothesis(utterance: Utterance, transcript: Transcript) -> Hypothesis:
    return Hypothesis(
        id=utterance.id,
        reference=utterance.text,
        text=transcript.text,
        tokens=tuple(token.id for token in transcript.tokens),
        calls=transcript.decoder_calls,
        drafter_calls=transcript.drafter_calls,
    )
