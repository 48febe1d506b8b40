"""The choice of tau for threshold decoding: as fast as can be promised from what dev shows.

Of several taus, the one with the least WER on dev looks better than it is: with few errors on dev,
chance decides. So a tau is taken only if its WER exceeds greedy's by no more than was allowed at
the upper confidence limit of the difference, and taus are tried in a fixed order, the largest
first, up to the first that fails. Then the chance that any tau that passed breaks the promise is
at most that of a single test, however many are tried (Maurer et al., 1995).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mtp_jax.decoding import Greedy, Threshold
from mtp_jax.evaluation.compare import Row, outcome_errors, row
from mtp_jax.evaluation.metrics import ErrorRate, upper_increase
from mtp_jax.evaluation.task import Task
from mtp_jax.inference.runner import Runner

CONFIDENCE = 0.95  # that the promise holds for speech like dev's
NO_TAU = 2.0  # above 1 nothing is sure enough: greedy


@dataclasses.dataclass(frozen=True)
class Choice:
    """How tau was chosen.

    Attributes:
        tau: the choice.
        sweep: a row for each tau tried, on dev; ``wer_increase_limit`` is the upper confidence
            limit of its WER less greedy's, per cent.
        greedy_wer: per cent, on dev.
        max_wer_increase: per cent, that was allowed.
    """

    tau: float
    sweep: tuple[Row, ...]
    greedy_wer: float
    max_wer_increase: float

    @property
    def is_safe(self) -> bool:
        """Whether any tau keeps the promise."""
        return self.tau != NO_TAU


def choose_tau(
    runner: Runner, dev: Task, taus: Sequence[float], max_wer_increase: float, size: int
) -> Choice:
    """The tau with the fewest calls of those whose WER is surely within what was allowed.

    Args:
        runner: the model.
        dev: the data to choose on.
        taus: to try.
        max_wer_increase: per cent, absolute, by which the WER on such data may exceed greedy's,
            at a confidence of `CONFIDENCE`.
        size: batch size.

    Returns:
        The choice; tau is `NO_TAU` if none is good enough.
    """
    normalize = runner.model.config.evaluation.normalizer
    greedy = dev.decode(runner, Greedy(), size)
    base = outcome_errors(greedy, normalize)
    rows, errors = [], []
    for tau in sorted(taus):
        outcome = dev.decode(runner, Threshold(tau), size)
        rows.append(row("threshold", {"tau": tau}, outcome, greedy, normalize))
        errors.append(outcome_errors(outcome, normalize))
    limits = increase_limits(errors, base)
    for made, limit in zip(rows, limits, strict=True):
        made["wer_increase_limit"] = limit
    good = rows[first_safe(limits, max_wer_increase) :]
    best = min(good, key=lambda r: r["decoder_calls"], default={"options": {"tau": NO_TAU}})
    return Choice(best["options"]["tau"], tuple(rows), base.percent, max_wer_increase)


def increase_limits(errors: Sequence[ErrorRate], greedy: ErrorRate) -> list[float]:
    """Upper confidence limits of each tau's WER less greedy's, per cent.

    What an utterance can lose at once is taken from this tau and the next smaller one, as that one
    shows the same losses more often; where no tau shows any, it is all words of an average one.

    Args:
        errors: of each tau, in increasing order.
        greedy: of greedy, for the same utterances.
    """
    base = np.array(greedy.errors)
    largest = [float(np.max(np.array(e.errors) - base, initial=0)) for e in errors]
    average = sum(greedy.units) / max(len(greedy.units), 1)
    limits = []
    for place, rate in enumerate(errors):
        below = max(largest[max(place - 1, 0) : place + 1])
        size = below or max(largest) or max(average, 1.0)
        limits.append(upper_increase(rate, greedy, size, CONFIDENCE))
    return limits


def first_safe(limits: Sequence[float], max_wer_increase: float) -> int:
    """Place of the smallest tau that is as good as was allowed, and all larger ones with it."""
    place = len(limits)
    while place and limits[place - 1] <= max_wer_increase:
        place -= 1
    return place
