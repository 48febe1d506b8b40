"""The decode contract of DESIGN.md: on toy callables, which are exact, and on tiny real models."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mtp_jax.decoding import Decoded, Greedy, Strategy, Threshold, Verify
from mtp_jax.decoding import text as text_functions
from mtp_jax.decoding.text import most_likely
from tests import toy
from tests.toy import DRAFTS, EOS, PERFECT, WRONG, ByHand, Toy, by_hand, make

LIMIT = 11  # a multiple of no M below
few_examples = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)

traces: Counter[str] = Counter()


# Most of the time goes into compiling; unoptimised, it takes half as long.
unoptimized = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames="limit", compiler_options=unoptimized)
def decode(strategy: Strategy, toys: Toy, active: jax.Array, limit: int = LIMIT) -> Decoded:
    traces[type(strategy).__name__] += 1
    return strategy.decode(toys.model(), active, limit)


def run(strategy: Strategy, toys: Toy, active: object = None, limit: int = LIMIT) -> Decoded:
    """Decodes with NumPy arrays as the result; all rows are active unless told."""
    rows = toys.prompt.shape[0]
    active = jnp.ones(rows, bool) if active is None else jnp.array(active)
    return jax.device_get(decode(strategy, toys, active, limit=limit))


def texts(decoded: Decoded) -> list[list[int]]:
    pairs = zip(decoded.tokens.tolist(), decoded.length.tolist(), strict=True)
    return [tokens[:length] for tokens, length in pairs]


def assert_equal(ours: Decoded, theirs: Decoded, fields: str) -> None:
    for field in fields.split():
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


PER_ROW = "tokens length calls proposed accepted call"
ALL = f"{PER_ROW} loop_steps"


# The strategies once more, slow and obvious: one row, Python lists, no cache.


class Slow(NamedTuple):
    text: list[int]
    calls: int
    proposed: list[int]
    accepted: list[int]
    call: list[int]


def over(text: list[int], limit: int) -> bool:
    return text[-1:] == [EOS] or len(text) == limit


def greedy_by_hand(lm: ByHand, limit: int = LIMIT) -> Slow:
    text: list[int] = []
    while not over(text, limit):
        text.append(lm.next_token(text))
    none = [0] * (lm.heads - 1)
    return Slow(text, len(text), none, none, [*range(1, len(text) + 1)])


def threshold_by_hand(lm: ByHand, tau: float, limit: int = LIMIT) -> Slow:
    text: list[int] = []
    call: list[int] = []
    calls, proposed, accepted = 0, [0] * (lm.heads - 1), [0] * (lm.heads - 1)
    while not over(text, limit):
        calls += 1
        drafts = lm.drafts(text)
        text.append(lm.next_token(text))
        for i, (token, probability) in enumerate(drafts):
            if over(text, limit):
                break
            proposed[i] += 1
            if probability < tau:
                break
            accepted[i] += 1
            text.append(token)
        call += [calls] * (len(text) - len(call))
    return Slow(text, calls, proposed, accepted, call)


def verify_by_hand(lm: ByHand, limit: int = LIMIT) -> Slow:
    drafts = lm.needed_drafts([])
    text = [lm.next_token([])]
    calls, proposed, accepted = 1, [0] * (lm.heads - 1), [0] * (lm.heads - 1)
    call = [1]
    while not over(text, limit):
        calls += 1
        before, said = text, lm.next_token(text)
        text = [*before, said]
        for i, (token, _) in enumerate(drafts):
            if over(before, limit):
                break
            proposed[i] += 1
            if token != said:
                break
            accepted[i] += 1
            if over(text, limit):
                break
            before, said = text, lm.next_token(text)
            text = [*before, said]
        call += [calls] * (len(text) - len(call))
        drafts = lm.needed_drafts(before)
    return Slow(text, calls, proposed, accepted, call)


def assert_as_by_hand(decoded: Decoded, slow: list[Slow]) -> None:
    assert texts(decoded) == [row.text for row in slow]
    assert decoded.calls.tolist() == [row.calls for row in slow]
    assert decoded.proposed.tolist() == [row.proposed for row in slow]
    assert decoded.accepted.tolist() == [row.accepted for row in slow]
    padded = [row.call + [0] * (decoded.tokens.shape[1] - len(row.call)) for row in slow]
    assert decoded.call.tolist() == padded
    assert decoded.loop_steps == max([1, *(row.calls for row in slow)])
    beyond = np.arange(decoded.tokens.shape[1]) >= decoded.length[:, None]
    assert not decoded.tokens[beyond].any()


HEADS = pytest.mark.parametrize("heads", [1, 2, 4])
eighths = st.integers(0, 9).map(lambda n: n / 8)


@st.composite
def toys_and_active(draw: st.DrawFn, heads: int) -> tuple[Toy, list[bool]]:
    rows = 8
    prompt = st.lists(st.integers(0, toy.PRIME - 1), max_size=3)
    toys = make(
        rows,
        heads,
        seed=draw(st.integers(0, 9_999)),
        eos_every=draw(st.sampled_from([1, 2, 5, 9, 20, 10_000])),
        drafts=draw(st.lists(st.sampled_from(list(DRAFTS.values())), min_size=rows, max_size=rows)),
        prompts=draw(st.lists(prompt, min_size=rows, max_size=rows)),
        garbage=draw(st.sampled_from([0, 1, 2**31 - 1])),
        serial=draw(st.booleans()),
    )
    return toys, draw(st.lists(st.booleans(), min_size=rows, max_size=rows))


def only(active: list[bool], slow: list[Slow], heads: int) -> list[Slow]:
    """Filler rows cost nothing and say nothing."""
    nothing = Slow([], 0, [0] * (heads - 1), [0] * (heads - 1), [])
    return [row if real else nothing for row, real in zip(slow, active, strict=True)]


@HEADS
def test_greedy_is_the_slow_loop(heads: int) -> None:
    @few_examples
    @hypothesis.given(toys_and_active(heads))
    def check(drawn: tuple[Toy, list[bool]]) -> None:
        toys, active = drawn
        slow = only(active, [greedy_by_hand(lm) for lm in by_hand(toys)], heads)
        for width in {1, heads}:
            assert_as_by_hand(run(Greedy(width), toys, active), slow)

    check()


@HEADS
def test_threshold_is_the_slow_loop(heads: int) -> None:
    @few_examples
    @hypothesis.given(toys_and_active(heads), eighths)
    def check(drawn: tuple[Toy, list[bool]], tau: float) -> None:
        toys, active = drawn
        slow = only(active, [threshold_by_hand(lm, tau) for lm in by_hand(toys)], heads)
        assert_as_by_hand(run(Threshold(tau), toys, active), slow)

    check()


@HEADS
def test_verify_is_the_slow_loop(heads: int) -> None:
    @few_examples
    @hypothesis.given(toys_and_active(heads))
    def check(drawn: tuple[Toy, list[bool]]) -> None:
        toys, active = drawn
        slow = only(active, [verify_by_hand(lm) for lm in by_hand(toys)], heads)
        assert_as_by_hand(run(Verify(), toys, active), slow)

    check()


# The laws.


@pytest.mark.parametrize("kind", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_verify_equals_greedy(rows: int, kind: int) -> None:
    for seed in range(8):
        toys = make(rows, heads=4, seed=seed, drafts=kind)
        greedy, verify = run(Greedy(), toys), run(Verify(), toys)
        assert_equal(verify, greedy, "tokens length")
        assert np.all(verify.calls <= greedy.calls)
        if kind == PERFECT:
            assert verify.calls.tolist() == [1 + math.ceil((n - 1) / 4) for n in greedy.length]
            np.testing.assert_array_equal(verify.accepted, verify.proposed)
        if kind == WRONG:
            np.testing.assert_array_equal(verify.calls, greedy.length)
            assert not verify.accepted.any()


@HEADS
def test_greedy_takes_a_call_a_token_at_any_width(heads: int) -> None:
    toys = make(8, heads)
    narrow, wide = run(Greedy(), toys), run(Greedy(heads), toys)
    np.testing.assert_array_equal(narrow.calls, narrow.length)
    assert narrow.loop_steps == narrow.length.max()
    assert len(set(narrow.length.tolist())) > 2, "the rows should differ, or this shows little"
    assert_equal(wide, narrow, ALL)


@HEADS
def test_threshold_above_1_is_greedy(heads: int) -> None:
    for kind in DRAFTS.values():
        toys = make(8, heads, drafts=kind)
        greedy, threshold = run(Greedy(), toys), run(Threshold(1.001), toys)
        assert_equal(threshold, greedy, "tokens length calls accepted loop_steps")


def test_with_one_head_every_strategy_is_greedy() -> None:
    for seed in range(5):
        toys = make(8, heads=1, seed=seed)
        greedy = run(Greedy(), toys)
        for strategy in (Threshold(0.0), Verify()):
            assert_equal(run(strategy, toys), greedy, ALL)


def test_threshold_at_0_with_perfect_drafts_takes_the_fewest_calls() -> None:
    for seed in range(5):
        toys = make(8, heads=4, seed=seed, drafts=PERFECT)
        greedy, threshold = run(Greedy(), toys), run(Threshold(0.0), toys)
        assert_equal(threshold, greedy, "tokens length")
        assert threshold.calls.tolist() == [math.ceil(n / 4) for n in greedy.length]


def test_tau_trades_calls() -> None:
    toys = make(8, heads=4, drafts=PERFECT)
    fewest, some, most = (run(Threshold(tau), toys).calls for tau in (0.0, 0.5, 1.001))
    assert np.all(fewest <= some)
    assert np.all(some <= most)
    assert fewest.sum() < some.sum() < most.sum()


STRATEGIES = pytest.mark.parametrize(
    "strategy", [Greedy(), Threshold(0.5), Verify()], ids=["greedy", "threshold", "verify"]
)


@STRATEGIES
def test_order_and_size_of_the_batch_change_nothing(strategy: Strategy) -> None:
    kinds = [*DRAFTS.values(), PERFECT, WRONG, PERFECT]
    toys = make(8, heads=4, drafts=kinds)
    together = run(strategy, toys)
    order = np.array([5, 2, 7, 0, 3, 1, 6, 4])
    shuffled = run(strategy, toys.rows(order))
    for field in PER_ROW.split():
        np.testing.assert_array_equal(getattr(shuffled, field), getattr(together, field)[order])
    for row in range(8):  # so every row rolls back alone
        alone = run(strategy, toys.rows([row]))
        for field in PER_ROW.split():
            np.testing.assert_array_equal(getattr(alone, field)[0], getattr(together, field)[row])


@STRATEGIES
def test_filler_rows_change_nothing(strategy: Strategy) -> None:
    toys = make(8, heads=4, drafts=list(range(5)) + [PERFECT] * 3)
    active = np.array([True, False, True, True, False, True, True, False])
    whole, some = run(strategy, toys), run(strategy, toys, active)
    for field in PER_ROW.split():
        expected = np.where(
            active.reshape(-1, *[1] * (getattr(whole, field).ndim - 1)), getattr(whole, field), 0
        )
        np.testing.assert_array_equal(getattr(some, field), expected, err_msg=field)
    assert some.loop_steps == some.calls.max()
    nobody = run(strategy, toys, np.zeros(8, bool))
    assert not nobody.calls.any()
    assert not nobody.length.any()
    assert not nobody.tokens.any()


@STRATEGIES
def test_free_cache_slots_change_nothing(strategy: Strategy) -> None:
    toys = make(8, heads=4)
    exact = run(strategy, toys)
    for garbage, slack in ((0, 0), (2**31 - 1, 0), (77, 13)):
        other = make(8, heads=4, garbage=garbage, slack=slack)
        assert_equal(run(strategy, other), exact, ALL)


@STRATEGIES
def test_eos_at_every_place_of_a_block(strategy: Strategy) -> None:
    found: dict[int, int] = {}
    for seed in range(2_000):
        length = len(greedy_by_hand(by_hand(make(1, 4, seed=seed, prompts=[[]]))[0]).text)
        found.setdefault(length, seed)
    assert sorted(found) == list(range(1, LIMIT + 1))
    for length, seed in found.items():
        toys = make(1, heads=4, seed=seed, drafts=PERFECT, prompts=[[]])
        strategy = Threshold(0.0) if isinstance(strategy, Threshold) else strategy
        decoded = run(strategy, toys)
        assert texts(decoded) == [greedy_by_hand(by_hand(toys)[0]).text]
        assert decoded.length.tolist() == [length]
        if length < LIMIT:
            assert decoded.tokens[0, length - 1] == EOS


@STRATEGIES
@pytest.mark.parametrize("limit", [1, 6])
def test_length_limit_at_any_place_of_a_block(strategy: Strategy, limit: int) -> None:
    strategy = Threshold(0.0) if isinstance(strategy, Threshold) else strategy
    toys = make(8, heads=4, eos_every=10_000, drafts=PERFECT)
    decoded = run(strategy, toys, limit=limit)
    assert texts(decoded) == [greedy_by_hand(lm, limit).text for lm in by_hand(toys)]
    assert decoded.length.tolist() == [limit] * 8
    assert EOS not in decoded.tokens


def test_verify_needs_no_larger_cache_than_greedy() -> None:
    """Else real models would differ in the last bits. Prompt and text fill the cache here."""
    full = [[1, 2, 3]] * 8
    for kind in DRAFTS.values():
        toys = make(8, heads=4, eos_every=10_000, drafts=kind, prompts=full)
        assert_as_by_hand(run(Verify(), toys), [verify_by_hand(lm) for lm in by_hand(toys)])


def test_empty_prompts_decode_like_any_other() -> None:
    toys = make(3, heads=4, prompts=[[], [5], []], drafts=[PERFECT, WRONG, WRONG])
    greedy = run(Greedy(), toys)
    assert_equal(run(Verify(), toys), greedy, "tokens length")
    assert texts(greedy) == [greedy_by_hand(lm).text for lm in by_hand(toys)]
    assert texts(greedy)[0] == texts(greedy)[2] != texts(greedy)[1]


def test_ties_go_to_the_lowest_id() -> None:
    tokens, log_probs = most_likely(jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(log_probs, [-np.log(2 + np.exp(-2)), -np.log(3)], rtol=1e-6)
    none = jnp.full((4, 9), -jnp.inf)
    assert most_likely(none)[0].tolist() == [0] * 4
    tied = 0
    for lm in by_hand(make(8, heads=1)):  # and the toys, whose logits tie all the time, agree
        text = greedy_by_hand(lm).text
        for n in range(len(text)):
            state = lm._state(text[:n])
            scores = [toy.score(lm.seed, state, t) for t in range(toy.VOCABULARY) if t != EOS]
            tied += scores.count(max(scores)) > 1
    assert tied > 5


def test_tested_drafts_by_hand() -> None:
    passed = jnp.array([[True, False, True], [False, True, True], [True, True, True]])
    ended = jnp.array([[False, False, False], [False, False, False], [False, False, True]])
    expected = [[True, True, False], [True, False, False], [True, True, False]]
    assert text_functions.tested(passed, ended).tolist() == expected


def test_nothing_is_compiled_anew_for_other_acceptance_lengths_or_taus() -> None:
    rows = 5  # a shape that no other test has
    before = decode._cache_size()
    traces.clear()
    lengths = set()
    for kind in DRAFTS.values():
        toys = make(rows, heads=4, drafts=kind)
        lengths |= {int(run(Verify(), toys).accepted.sum())}
        for tau in (0.0, 0.3, 2.0):
            run(Threshold(tau), toys)
    assert len(lengths) > 3
    assert traces == {"Verify": 1, "Threshold": 1}
    assert decode._cache_size() == before + 2
