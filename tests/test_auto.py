"""Decoding by wide and narrow calls: the text is greedy's, and calls are wide while they pay."""

from __future__ import annotations

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.decoding import Auto, Decoded, Greedy, Verify
from mtp_jax.decoding.alignment import DraftText
from mtp_jax.decoding.pace import FIRST_REST, LONGEST_REST, TRIED, Pace
from tests.test_decoding import LIMIT, few_examples, texts, unoptimized
from tests.test_reading import ROWS, read, reading_of
from tests.toy import DRAFTS, PERFECT, WRONG, Toy, make

WIDTH = 4


@functools.partial(jax.jit, static_argnames="limit", compiler_options=unoptimized)
def decode(strategy, toys: Toy, reading: DraftText | None, active, limit: int = LIMIT) -> Decoded:
    model = toys.model()._replace(ctc_hypothesis=reading)
    return strategy.decode(model, active, limit)


EVERY = jnp.ones(ROWS, bool)


def pace(cost: float, gain: float = 0.0, seen: int = 0, rest: int = 0) -> Pace:
    """Of calls that were made before."""
    known = {"gain": np.float32(gain), "seen": np.int32(seen), "rest": np.int32(rest)}
    return Pace.of(cost).replace(**known)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("has_ctc", [False, True])
def test_the_text_is_greedys_whatever_calls_cost(heads, has_ctc) -> None:
    @few_examples
    @hypothesis.given(
        read,
        st.integers(0, 9_999),
        st.lists(st.sampled_from(list(DRAFTS.values())), min_size=ROWS, max_size=ROWS),
        st.sampled_from([0.0, 1.0, 1.5, 2.5, 9.0, math.inf]),
        st.sampled_from([(0.0, 0, 0), (1.2, 30, 3), (3.0, 9, 0), (2.4, 8, 1)]),
        st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    )
    def check(rows, seed, drafts, cost, before, active) -> None:
        toys = make(ROWS, heads, seed=seed, eos_every=20, drafts=drafts)
        reading, active = reading_of(rows) if has_ctc else None, jnp.array(active)
        found = decode(Auto(WIDTH, pace=pace(cost, *before)), toys, reading, active)
        greedy = decode(Greedy(), toys, None, active)
        assert texts(found) == texts(greedy)
        np.testing.assert_array_equal(found.log_probs, greedy.log_probs)
        assert np.all(found.calls <= greedy.calls)
        assert int(found.loop_steps) <= int(greedy.loop_steps)
        if heads > 1 or has_ctc:
            assert found.pace.gain >= 0
            assert 0 <= found.pace.rest < found.pace.next_rest <= LONGEST_REST
        if math.isinf(cost):
            assert not found.proposed.any()

    check()


def test_with_all_calls_wide_it_is_verification() -> None:
    """By the drafts that the model has: of heads, of CTC, or of both."""
    rows = [[3, 1, 4]] * ROWS
    for heads, has_ctc, same in (
        (3, False, Verify()),
        (1, True, Verify(WIDTH)),
        (3, True, Verify(WIDTH, joint=True)),
    ):
        toys = make(ROWS, heads, drafts=[kind % 5 for kind in range(ROWS)])
        reading = reading_of(rows) if has_ctc else None
        ours, theirs = (decode(s, toys, reading, EVERY) for s in (Auto(WIDTH), same))
        for field in ("tokens", "calls", "proposed", "accepted", "loop_steps", "call"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_without_drafts_it_is_greedy() -> None:
    toys = make(ROWS, 1)
    ours, theirs = (decode(s, toys, None, EVERY) for s in (Auto(), Greedy()))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.calls, theirs.calls)
    assert ours.pace is None


def test_calls_that_do_not_pay_are_few() -> None:
    """Wrong drafts: four calls end the first try, and each try behind a rest is a single call.

    The next batch goes on with the rest that is left, so that short texts do not try more.
    """
    limit, cost = 200, 1.5
    toys = make(ROWS, 3, eos_every=10_000, drafts=WRONG)
    length = max(len(row) for row in texts(decode(Greedy(), toys, None, EVERY, limit=limit)))
    assert length == limit, "the toy ends earlier: take another seed"
    found = decode(Auto(pace=pace(cost)), toys, None, EVERY, limit=limit)
    wide = []
    now, every = Pace.of(cost), jnp.ones(1, bool)
    for _ in range(2 * (limit - 1)):
        wide.append(bool(now.wide))
        now = now.after_wide(jnp.ones(1), every) if wide[-1] else now.after_narrow()
    calls = limit - 1  # each gives a token
    assert found.proposed[:, 0].max() == sum(wide[:calls])
    first = wide.index(False)
    assert first == 4
    tries = [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST, LONGEST_REST, LONGEST_REST]
    expected = [True] * first + [x for rest in tries for x in [*[False] * rest, True]]
    assert wide[: len(expected)] == expected
    again = decode(Auto(pace=found.pace), toys, None, EVERY, limit=limit)
    assert again.proposed[:, 0].max() == sum(wide[calls : 2 * calls])


def test_calls_that_pay_are_made_again_behind_one_rest() -> None:
    limit = 200
    toys = make(ROWS, 3, eos_every=10_000, drafts=PERFECT)
    resting = pace(1.5, 1.0, 30, FIRST_REST)
    found = decode(Auto(pace=resting), toys, None, EVERY, limit=limit)
    assert int(found.loop_steps) == 1 + FIRST_REST + -(-(limit - 1 - FIRST_REST) // 3)
    assert found.pace.gain > 2


def test_a_pace_judges_a_try_by_itself() -> None:
    now, every = pace(2.0, 1.0, 30, FIRST_REST), jnp.ones(2, bool)
    for _ in range(FIRST_REST):
        assert not now.wide
        now = now.after_narrow()
    assert now.wide
    assert int(now.seen) == TRIED
    assert now.after_wide(jnp.array([3, 1]), every).wide
    assert int(now.after_wide(jnp.array([1, 1]), every).rest) == FIRST_REST
    alone = now.after_wide(jnp.array([1, 9]), jnp.array([False, True]))
    assert alone.wide
    assert float(alone.gain) > float(now.gain)


def test_a_pace_is_a_mean_that_few_calls_hardly_move() -> None:
    """Of the first calls it is their mean, beside what was assumed before them."""
    now, every = Pace.of(2.0), jnp.ones(1, bool)
    for given in (4, 1, 3, 4):
        now = now.after_wide(jnp.array([given]), every)
    assert float(now.gain) == pytest.approx((2 * 3.0 + 4 + 1 + 3 + 4) / 6)
    known = pace(2.0, 3.5, 1000)
    for _ in range(5):
        known = known.after_wide(jnp.array([1]), every)
        assert known.wide, "five calls of a token each end no run of calls that pay"
