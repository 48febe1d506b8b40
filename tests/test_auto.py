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
from mtp_jax.decoding.edit_distance import DraftText
from mtp_jax.decoding.pace import FIRST_REST, LONGEST_REST, Pace
from tests.test_decoding import LIMIT, few_examples, texts, unoptimized
from tests.test_reading import ROWS, read, reading_of
from tests.toy import DRAFTS, PERFECT, WRONG, Toy, make

WIDTH = 4


@functools.partial(jax.jit, static_argnames="limit", compiler_options=unoptimized)
def decode(strategy, toys: Toy, reading: DraftText | None, active, limit: int = LIMIT) -> Decoded:
    model = toys.model()._replace(ctc_hypothesis=reading)
    return strategy.decode(model, active, limit)


EVERY = jnp.ones(ROWS, bool)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("has_ctc", [False, True])
def test_the_text_is_greedys_whatever_calls_cost(heads, has_ctc) -> None:
    @few_examples
    @hypothesis.given(
        read,
        st.integers(0, 9_999),
        st.lists(st.sampled_from(list(DRAFTS.values())), min_size=ROWS, max_size=ROWS),
        st.sampled_from([0.0, 1.0, 1.5, 2.5, 9.0, math.inf]),
        st.sampled_from([0.0, 1.2, 3.0]),
        st.lists(st.booleans(), min_size=ROWS, max_size=ROWS),
    )
    def check(rows, seed, drafts, cost, gain, active) -> None:
        toys = make(ROWS, heads, seed=seed, eos_every=20, drafts=drafts)
        reading, active = reading_of(rows) if has_ctc else None, jnp.array(active)
        found = decode(Auto(WIDTH, cost=cost, gain=gain), toys, reading, active)
        greedy = decode(Greedy(), toys, None, active)
        assert texts(found) == texts(greedy)
        np.testing.assert_array_equal(found.log_probs, greedy.log_probs)
        assert np.all(found.calls <= greedy.calls)
        assert int(found.loop_steps) <= int(greedy.loop_steps)
        if heads > 1 or has_ctc:
            assert found.gain >= 0
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
    assert ours.gain is None


def test_calls_that_do_not_pay_are_few() -> None:
    """Wrong drafts: beside one token per call, a few calls of each length of rest are wide."""
    limit = 200
    toys = make(ROWS, 3, eos_every=10_000, drafts=WRONG)
    length = max(len(row) for row in texts(decode(Greedy(), toys, None, EVERY, limit=limit)))
    assert length == limit, "the toy ends earlier: take another seed"
    found = decode(Auto(cost=1.5, gain=1.0), toys, None, EVERY, limit=limit)
    rests = [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST, *[LONGEST_REST] * 4]
    tries = next(n for n in range(6) if sum(rests[: n + 1]) + n + 1 >= limit)
    assert found.proposed[:, 0].max() == tries
    perfect = toys.replace(drafts=jnp.full(ROWS, PERFECT))
    found = decode(Auto(cost=1.5, gain=1.0), perfect, None, EVERY, limit=limit)
    narrow = FIRST_REST
    assert int(found.loop_steps) == 1 + narrow + -(-(limit - 1 - narrow) // 3)


def test_a_pace_judges_a_try_by_itself() -> None:
    pace, every = Pace.start(2.0, 1.0), jnp.ones(2, bool)
    assert not pace.wide
    for _ in range(FIRST_REST):
        assert not pace.wide
        pace = pace.after_narrow()
    assert pace.wide
    assert pace.after_wide(jnp.array([3, 1]), every).wide
    assert int(pace.after_wide(jnp.array([1, 1]), every).rest) == 2 * FIRST_REST
    alone = pace.after_wide(jnp.array([1, 9]), jnp.array([False, True]))
    assert alone.wide
    assert float(alone.gain) > float(pace.gain)
