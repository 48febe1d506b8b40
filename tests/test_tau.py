"""The choice of tau: its promise holds in repeated draws of dev sets with known error rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from mtp_jax.evaluation.metrics import ErrorRate, upper_increase
from mtp_jax.evaluation.tau import CONFIDENCE, first_safe, increase_limits

DRAWS = 400
TAUS = 6
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Process:
    """How threshold decoding errs, utterance by utterance.

    Attributes:
        words: draws the reference words of N utterances.
        lost, gained: draw the words that an utterance loses, or gains, where it does; `mean_lost`
            and `mean_gained` are their expectations.
        losing, gaining: the probability that it does, of each tau; the smallest tau first.
    """

    words: Draw
    mean_words: float
    lost: Draw
    mean_lost: float
    losing: tuple[float, ...]
    gained: Draw = lambda rng, n: np.ones(n, int)
    mean_gained: float = 1.0
    gaining: tuple[float, ...] = (0.0,) * TAUS

    def increase(self) -> np.ndarray:
        """float[TAUS]: the true WER less greedy's, per cent."""
        lost = np.array(self.losing) * self.mean_lost
        return 100 * (lost - np.array(self.gaining) * self.mean_gained) / self.mean_words

    def draw(self, rng: np.random.Generator, n: int) -> tuple[list[ErrorRate], ErrorRate]:
        """Errors of each tau and of greedy; smaller taus lose wherever larger ones do."""
        words = tuple(self.words(rng, n).tolist())
        base = 1 + rng.binomial(np.array(words) - 1, 0.2)  # at least the word that may be gained
        sizes = self.lost(rng, n), self.gained(rng, n)
        chance = rng.random((2, n))
        rates = []
        for lose, gain in zip(self.losing, self.gaining, strict=True):
            change = sizes[0] * (chance[0] < lose) - sizes[1] * (chance[1] < gain)
            rates.append(ErrorRate(tuple((base + change).tolist()), words))
        return rates, ErrorRate(tuple(base.tolist()), words)


def short(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(2, 9, n)  # 5 on average, as voice commands have


def long(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(10, 51, n)  # 30 on average, as read books have


def rates(boundary: float) -> tuple[float, ...]:
    """Probabilities to lose, of which the third is at the boundary of what is allowed."""
    return tuple(boundary * factor for factor in (4, 2, 1.05, 0.5, 0.2, 0.05))


ALLOWED = 0.5
PROCESSES = {
    "a word now and then": Process(
        short, 5, lambda rng, n: np.ones(n, int), 1, rates(ALLOWED / 100 * 5)
    ),
    "bursts": Process(
        long, 30, lambda rng, n: rng.geometric(0.3, n), 1 / 0.3, rates(ALLOWED / 100 * 30 * 0.3)
    ),
    "rare loops": Process(
        long, 30, lambda rng, n: rng.integers(8, 13, n), 10, rates(ALLOWED / 100 * 30 / 10)
    ),
    "losses and gains": Process(
        *(long, 30, lambda rng, n: rng.integers(1, 4, n), 2),
        losing=tuple(0.1 + x for x in rates(ALLOWED / 100 * 30 / 2)),
        gaining=(0.2,) * TAUS,
    ),
}


def choices(process: Process, n: int, allowed: float) -> list[int]:
    """The place of the smallest tau that passes, in each of `DRAWS` dev sets of N utterances."""
    rng = np.random.default_rng(0)
    return [first_safe(increase_limits(*process.draw(rng, n)), allowed) for _ in range(DRAWS)]


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("n", [20, 150, 1000])
def test_the_promise_holds_in_the_stated_share_of_draws(name: str, n: int) -> None:
    process = PROCESSES[name]
    good = np.append(process.increase() <= ALLOWED, True)  # none at all is greedy
    assert not good[2], "the third tau breaks the promise, by little"
    kept = [good[place] for place in choices(process, n, ALLOWED)]
    assert len(kept) == DRAWS
    assert np.mean(kept) >= CONFIDENCE


@pytest.mark.parametrize("name", PROCESSES)
def test_with_much_data_a_fast_tau_is_found(name: str) -> None:
    found = choices(PROCESSES[name], 4000, ALLOWED)
    assert np.mean(np.array(found) == 3) > 0.8, "the smallest of those that keep the promise"


def test_few_utterances_show_nothing() -> None:
    """Ten without a loss: one in every fourth would hardly be seen either."""
    base = ErrorRate((0,) * 10, (5,) * 10)
    limits = increase_limits([base] * TAUS, base)
    assert first_safe(limits, ALLOWED) == TAUS
    many = ErrorRate((0,) * 4000, (5,) * 4000)
    assert first_safe(increase_limits([many] * TAUS, many), ALLOWED) == 0


def test_of_no_loss_in_n_the_limit_is_three_in_n() -> None:
    rate = ErrorRate((1,) * 100, (10,) * 100)
    assert upper_increase(rate, rate, 1, 0.95) == pytest.approx(100 * 3 / 1000, rel=0.01)
    assert upper_increase(rate, rate, 4, 0.95) == pytest.approx(100 * 12 / 1000, rel=0.01)


def test_the_limit_is_above_the_estimate_and_falls_with_data() -> None:
    ours, theirs = ErrorRate((1, 0, 2, 0), (9,) * 4), ErrorRate((0, 0, 1, 1), (9,) * 4)
    limits = []
    for times in (1, 10, 100):
        many = [ErrorRate(x.errors * times, x.units * times) for x in (ours, theirs)]
        limits.append(upper_increase(many[0], many[1], 1, 0.95))
    estimate = ours.percent - theirs.percent
    assert limits[0] > limits[1] > limits[2] > estimate
    assert limits[2] < estimate + 1


def test_the_limit_needs_the_same_references() -> None:
    with pytest.raises(ValueError, match="same references"):
        upper_increase(ErrorRate((1,), (2,)), ErrorRate((1,), (3,)), 1, 0.95)


def test_taus_are_tried_from_the_largest_to_the_first_that_fails() -> None:
    assert first_safe([0.1, 0.9, 0.2, 0.3], 0.5) == 2
    assert first_safe([0.1, 0.2, 0.6], 0.5) == 3
    assert first_safe([], 0.5) == 0
