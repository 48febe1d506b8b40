"""A data set decoded by one strategy: texts, calls, time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import numpy as np

from mtp_jax import interrupts
from mtp_jax.data import Batch, Source
from mtp_jax.decoding import CtcGreedy, NBest, Strategy
from mtp_jax.distributed import multihost
from mtp_jax.inference.runner import Runner


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One text of an n-best list.

    Attributes:
        text: what was recognised.
        score: its log-probability, in nats.
        tokens: EOS included where it was reached.
        confidences: the probability of each token, given those before it.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """The output of one strategy for one utterance.

    Attributes:
        id: of the utterance.
        reference, text: what was said, and what was recognised.
        tokens: recognised tokens, EOS included where it was reached.
        calls: decoder calls.
        nbest: of strategies that make a list, the best first.
        drafter_calls: of another model's decoder, which drafted for this one.
    """

    id: str
    reference: str
    text: str
    tokens: tuple[int, ...]
    calls: int
    nbest: tuple[Alternative, ...] = ()
    drafter_calls: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The output of one strategy for a data set at one batch size.

    Attributes:
        hypotheses: in the order of the source; of recordings decoded in chunks at the end.
        proposed, accepted: int[M - 1] drafts of heads 2..M that were tested, and that were
            accepted; where drafts are read off a text and a call is S wide, int[S - 1].
        loop_steps: forward passes of the decoder over whole batches.
        at_length_limit: utterances that did not reach EOS.
        audio_seconds: decoded.
        wall_seconds: spent on it, reading of audio and compilation apart.
        compile_seconds: spent compiling.
        batch_size: rows per batch.
        missing: texts of what was not decoded and counts as deleted.
    """

    hypotheses: tuple[Hypothesis, ...]
    proposed: np.ndarray
    accepted: np.ndarray
    loop_steps: int
    at_length_limit: int
    audio_seconds: float
    wall_seconds: float
    compile_seconds: float
    batch_size: int
    missing: tuple[str, ...] = ()

    @property
    def references(self) -> list[str]:
        """What was said, also in what is missing."""
        return [*(h.reference for h in self.hypotheses), *self.missing]

    @property
    def texts(self) -> list[str]:
        """What was recognised of each of `references`."""
        return [*(h.text for h in self.hypotheses), *("" for _ in self.missing)]

    @property
    def calls(self) -> int:
        """Decoder calls, summed over utterances."""
        return sum(h.calls for h in self.hypotheses)

    @property
    def drafter_calls(self) -> int:
        """Calls of the drafter's decoder, summed over utterances; 0 without one."""
        return sum(h.drafter_calls for h in self.hypotheses)

    @property
    def tokens(self) -> int:
        """Tokens, EOS included, summed over utterances."""
        return sum(len(h.tokens) for h in self.hypotheses)

    def followed_by(self, other: Outcome) -> Outcome:
        """Both, of one strategy."""
        summed = (
            *("hypotheses", "missing", "proposed", "accepted", "loop_steps", "at_length_limit"),
            *("audio_seconds", "wall_seconds", "compile_seconds"),
        )
        return dataclasses.replace(
            self, **{name: getattr(self, name) + getattr(other, name) for name in summed}
        )


def decode_source(
    runner: Runner, source: Source, batches: Iterable[Batch], strategy: Strategy
) -> Outcome:
    """Decodes every batch.

    Args:
        runner: the model.
        source: that the rows of `batches` are of.
        batches: each utterance once.
        strategy: what decodes.

    Raises:
        Interrupted: between two batches, where a command was told to end.
    """
    hypotheses: dict[int, Hypothesis] = {}
    proposed = accepted = np.zeros(1, int)  # broadcast to as many drafts as the strategy has
    steps = limit = rows = 0
    audio = wall = compiling = 0.0
    spell = Speller(runner, strategy)
    for batch in interrupts.checked(batches):
        rows = len(batch.index)
        before = runner.compile_seconds
        start = time.perf_counter()
        done = runner.run(batch, strategy)
        decoded = multihost.to_host(done.decoded)
        wall += time.perf_counter() - start
        compiling += runner.compile_seconds - before
        proposed = proposed + decoded.proposed.sum(0)
        accepted = accepted + decoded.accepted.sum(0)
        steps += int(decoded.loop_steps)
        audio += float(batch.audio_length.sum()) / runner.model.config.front_end.sample_rate
        for row in np.flatnonzero(np.asarray(batch.index) >= 0).tolist():
            index = int(batch.index[row])
            tokens = tuple(decoded.tokens[row, : decoded.length[row]].tolist())
            limit += not spell.is_complete(tokens)
            utterance = source.utterances[index]
            hypotheses[index] = Hypothesis(
                id=utterance.id,
                reference=utterance.text,
                text=spell(tokens),
                tokens=tokens,
                calls=int(decoded.calls[row]),
                nbest=_alternatives(decoded.nbest, row, spell),
                drafter_calls=0 if done.drafter_calls is None else int(done.drafter_calls[row]),
            )
    return Outcome(
        hypotheses=tuple(hypotheses[i] for i in sorted(hypotheses)),
        proposed=proposed,
        accepted=accepted,
        loop_steps=steps,
        at_length_limit=limit,
        audio_seconds=audio,
        wall_seconds=wall - compiling,
        compile_seconds=compiling,
        batch_size=rows,
    )


class Speller:
    """Tokens of a strategy to text.

    Args:
        runner: the model.
        strategy: whose tokens these are; those of `CtcGreedy` are labels of CTC.
    """

    def __init__(self, runner: Runner, strategy: Strategy) -> None:
        self._is_ctc = isinstance(strategy, CtcGreedy)
        self._tokenizer = runner.tokenizer.ctc if self._is_ctc else runner.tokenizer
        self._eos = runner.model.vocabulary.eos

    def is_complete(self, tokens: tuple[int, ...]) -> bool:
        """Whether the text ended before the limit."""
        return self._is_ctc or (bool(tokens) and tokens[-1] == self._eos)

    def __call__(self, tokens: tuple[int, ...]) -> str:
        """The text."""
        ended = not self._is_ctc and self.is_complete(tokens)
        return self._tokenizer.decode(tokens[:-1] if ended else tokens)


def _alternatives(nbest: NBest | None, row: int, spell: Speller) -> tuple[Alternative, ...]:
    if nbest is None:
        return ()
    listed = []
    for place in np.flatnonzero(nbest.real[row]):
        length = int(nbest.length[row, place])
        tokens = tuple(nbest.tokens[row, place, :length].tolist())
        log_probs = np.asarray(nbest.log_probs[row, place, :length])
        confidences = tuple(np.exp(log_probs).tolist())
        listed.append(Alternative(spell(tokens), float(log_probs.sum()), tokens, confidences))
    return tuple(listed)
