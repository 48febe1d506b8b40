"""Beam searches against plain Python, brute force and greedy decoding, on toy models."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mtp_jax.decoding import (
    BeamSearch,
    Decoded,
    DraftsError,
    Greedy,
    PrefixBeam,
    kbest,
)
from mtp_jax.decoding.alignment import DraftText
from mtp_jax.decoding.verify_loop import verify_loop
from tests import toy
from tests.toy import EOS, PRIME, VOCABULARY, mix

LIMIT = 9


@struct.dataclass
class Fine:
    """A `Toy` whose logits are drawn finely, so that no two scores are equal.

    Attributes:
        toy: the model of prefixes.
        spread: float32, of the logits: the greater, the surer every head.
    """

    toy: toy.Toy
    spread: jax.Array

    @property
    def prompt(self):
        return self.toy.prompt

    def model(self):
        def next_token(hidden):
            return self.logits(hidden[..., 0, None], jnp.arange(VOCABULARY))

        return self.toy.model()._replace(next_token=next_token)

    def logits(self, state, token):
        drawn = mix(state + mix(token * 97 + self.toy.seed)) / PRIME
        return (self.spread * drawn).astype(jnp.float32)


def fine(rows=4, heads=3, seed=0, spread=6.0, **more) -> Fine:
    made = toy.make(rows, heads, seed=seed, **more)
    return Fine(made, jnp.float32(spread))


# Tiny programs take longer to optimize than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(quick_jit, static_argnums=3)
def decode_rows(model, strategy, active, limit) -> Decoded:
    return strategy.decode(model.model(), active, limit)


def decode(model, strategy, limit=LIMIT, active=None) -> Decoded:
    """One program for all models of a shape, all powers and whatever rows are active."""
    active = jnp.ones(len(model.prompt), bool) if active is None else active
    if not isinstance(strategy, Greedy):
        strategy = strategy.replace(length_power=jnp.float32(strategy.length_power))
    return decode_rows(model, strategy, active, limit)


@quick_jit
def log_probs(model: Fine, state: jax.Array, position: jax.Array) -> jax.Array:
    """Of head 1 behind a prefix: float32[V]."""
    return jax.nn.log_softmax(model.model().next_token(jnp.stack([state, position])))


class Plain:
    """One row of a `Fine` as plain Python over lists of tokens."""

    def __init__(self, model: Fine, row: int):
        self.model, self.row = model, toy.by_hand(model.toy)[row]
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def next_token(self, text: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities [V] behind `text`."""
        if text not in self._known:
            position = len(self.row.prompt) + len(text)
            state = self.row._state(list(text))
            self._known[text] = np.asarray(log_probs(self.model, state, position))
        return self._known[text]

    def score(self, text: tuple[int, ...]) -> float:
        """Head 1's log-probability of `text`."""
        return sum(float(self.next_token(text[:i])[t]) for i, t in enumerate(text))

    def over(self, text: tuple[int, ...], limit: int) -> bool:
        return bool(text) and (text[-1] == EOS or len(text) >= limit)

    def beam(self, beams: int, power: float, limit: int):
        """Beam search as its docstring tells it: hypotheses (text, score), and calls."""
        beam, calls = [((), 0.0)], 0
        while not all(self.over(text, limit) for text, _ in beam):
            calls += 1
            found = [(text, score) for text, score in beam if self.over(text, limit)]
            for text, score in beam:
                if not self.over(text, limit):
                    for token, log_prob in enumerate(self.next_token(text)):
                        found.append(((*text, token), score + float(log_prob)))
            beam = self.ranked(found, power)[:beams]
        return beam, calls

    def prefix_beam(self, beams: int, power: float, rounds: int, limit: int):
        """Prefix beam search as its docstring tells it: hypotheses (text, score)."""

        def finished(text):
            while not self.over(text, limit):
                text = (*text, int(np.argmax(self.next_token(text))))
            return text, self.score(text)

        found, own, tried = [finished(())], {}, set()  # own: where each may first be left
        for _ in range(rounds):
            ranks = [score / len(text) ** power for text, score in found]
            worst = min(ranks) if len(found) == beams else -np.inf
            promised = []
            for text, score in found:
                for place in range(own.get(text, 0), len(text)):
                    said = self.next_token(text[:place])
                    for token in np.argsort(-said, kind="stable")[1:beams].tolist():
                        prefix = (*text[:place], token)
                        rest = 0.0 if token == EOS else score - self.score(text[: place + 1])
                        length = place + 1 if token == EOS else len(text)
                        rank = (self.score(prefix) + rest) / length**power
                        if rank > worst and prefix not in tried:
                            promised.append((rank, prefix))
            promised = sorted(promised, key=lambda one: -one[0])[:beams]
            if not promised:
                break
            for _, prefix in promised:
                tried.add(prefix)
                found.append(finished(prefix))
                own[found[-1][0]] = len(prefix)
            found = self.ranked(found, power)[:beams]
        return self.ranked(found, power)

    def ranked(self, found, power: float):
        return sorted(found, key=lambda one: -one[1] / len(one[0]) ** power)


def lists(decoded: Decoded):
    """(text, score) of each hypothesis of each row."""
    best = decoded.nbest
    assert best is not None
    out = []
    for row in range(len(best.length)):
        out.append(
            [
                (tuple(t[:n].tolist()), float(np.sum(p[:n])))
                for t, p, n, real in zip(
                    *(np.asarray(x)[row] for x in (best.tokens, best.log_probs, best.length)),
                    np.asarray(best.real)[row],
                    strict=True,
                )
                if real
            ]
        )
    return out


def assert_lists(got: Decoded, row: int, expected) -> None:
    hypotheses = lists(got)[row]
    assert [text for text, _ in hypotheses] == [text for text, _ in expected]
    assert [s for _, s in hypotheses] == pytest.approx([s for _, s in expected], rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_a_beam_equals_plain_python(beams, power):
    for seed in range(3):
        model = fine(seed=seed)
        got = decode(model, BeamSearch(beams, power))
        for row in range(len(got.length)):
            expected, calls = Plain(model, row).beam(beams, power, LIMIT)
            assert_lists(got, row, expected)
            assert got.calls[row] == calls


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize(
    ("beams", "heads", "width", "rounds"),
    [(2, 1, 2, 4), (3, 4, 3, 1), (5, 2, 9, 9), (8, 3, 4, 2)],
)
def test_a_prefix_beam_equals_plain_python(beams, heads, width, rounds, power):
    for seed in range(3):
        model = fine(heads=heads, seed=seed)
        strategy = PrefixBeam(beams, power, width, rounds)
        got = decode(model, strategy)
        for row in range(len(got.length)):
            plain = Plain(model, row)
            assert_lists(got, row, plain.prefix_beam(beams, power, rounds, LIMIT))


def test_giving_up_changes_no_list_and_saves_calls(monkeypatch):
    model = fine(rows=20, heads=2)

    def found() -> list[Decoded]:
        @quick_jit
        def decode(power):
            strategy = PrefixBeam(4, power, width=2)
            return strategy.decode(model.model(), jnp.ones(20, bool), LIMIT)

        return [decode(power) for power in (0.0, 1.0)]

    given_up = found()
    monkeypatch.setattr(kbest, "verify_loop", lambda *three, **_: verify_loop(*three))
    for ours, whole in zip(given_up, found(), strict=True):
        for row, expected in enumerate(lists(whole)):
            assert_lists(ours, row, expected)
        assert np.all(ours.calls <= whole.calls)
        assert np.sum(ours.calls) < np.sum(whole.calls)


TEXTS = {
    text[: text.index(EOS) + 1] if EOS in text else text
    for text in itertools.product(range(VOCABULARY), repeat=3)
}
EVERYTHING = {"beams": len(TEXTS), "rounds": 50}


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    "strategy", [BeamSearch(len(TEXTS)), PrefixBeam(width=2, **EVERYTHING)], ids=["beam", "prefix"]
)
def test_with_room_for_every_text_it_is_brute_force(strategy, heads):
    """By head 1."""
    model = fine(rows=2, heads=heads)
    got = decode(model, strategy, 3)
    for row, hypotheses in enumerate(lists(got)):
        plain = Plain(model, row)
        scores = sorted(((plain.score(text), text) for text in TEXTS), reverse=True)
        assert_lists(got, row, [(text, score) for score, text in scores])
        assert sum(np.exp([score for _, score in hypotheses])) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("eos_every", [1, 3, 9])
def test_one_hypothesis_is_greedys(eos_every):
    """Ties abound in this toy."""
    for drafts in toy.DRAFTS.values():
        for heads in (1, 4):
            model = toy.make(6, heads, eos_every=eos_every, drafts=drafts)
            greedy = decode(model, Greedy())
            for strategy in (BeamSearch(1), PrefixBeam(1)):
                got = decode(model, strategy)
                np.testing.assert_array_equal(got.tokens, greedy.tokens)
                np.testing.assert_array_equal(got.length, greedy.length)
                assert np.all(got.calls <= greedy.calls)
            if heads == 1:
                np.testing.assert_array_equal(decode(model, BeamSearch(1)).calls, greedy.calls)


class Told(NamedTuple):
    """A toy that is told what CTC reads."""

    toy: Fine
    ctc_hypothesis: DraftText

    @property
    def prompt(self):
        return self.toy.prompt

    def model(self):
        return self.toy.model()._replace(ctc_hypothesis=self.ctc_hypothesis)


def test_drafts_change_no_list():
    """Whoever makes them, and however wide a call is."""
    alone = fine(rows=5, heads=1)
    expected = decode(alone, PrefixBeam(4, width=2))
    others = [decode(fine(rows=5, heads=4), PrefixBeam(4, width=width)) for width in (2, 5)]
    greedy = decode(alone, Greedy())
    for length in (greedy.length, greedy.length // 2, 0 * greedy.length):
        told = Told(alone, DraftText(greedy.tokens, length))
        others.append(decode(told, PrefixBeam(4, width=3, ctc_width=3)))
    for got in others:
        for field in ("tokens", "length", "real"):
            ours, theirs = getattr(got.nbest, field), getattr(expected.nbest, field)
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(got.nbest.log_probs, expected.nbest.log_probs, rtol=1e-5)
    assert len({int(got.calls.sum()) for got in others}) > 1


def test_a_rest_that_stays_costs_one_call():
    """Of a model for which what comes next depends on the place alone."""
    model = fine(rows=3, heads=1)

    def placed(hidden):
        return model.logits(hidden[..., 1, None], jnp.arange(VOCABULARY)).at[..., EOS].set(-5.0)

    def search(width):
        seen = model.model()._replace(next_token=placed)
        strategy = PrefixBeam(4, jnp.float32(0), width, rounds=1)
        return quick_jit(lambda: strategy.decode(seen, jnp.ones(3, bool), LIMIT))()

    # Greedy's, and one for all the rest; one more where the token taken is the one behind it, so
    # that it seems to have been left out.
    calls = search(LIMIT).calls
    assert calls.min() == LIMIT + 1
    assert calls.max() <= LIMIT + 2
    assert search(2).calls.min() > LIMIT + 2


BOTH = pytest.mark.parametrize("strategy", [BeamSearch(6), PrefixBeam(6), PrefixBeam(6, 1.0)])


@BOTH
def test_scores_are_head_1s_and_no_two_hypotheses_are_alike(strategy):
    for seed in range(4):
        model = fine(seed=seed)
        got = decode(model, strategy)
        for row, hypotheses in enumerate(lists(got)):
            plain = Plain(model, row)
            for text, score in hypotheses:
                assert score == pytest.approx(plain.score(text), rel=1e-4)
                assert EOS not in text[:-1]
                assert text[-1] == EOS or len(text) == LIMIT
            assert len({text for text, _ in hypotheses}) == len(hypotheses) == 6
            power = float(strategy.length_power)
            assert hypotheses == plain.ranked(hypotheses, power)


def test_ties_go_to_the_lower_token():
    """Where every text of a length is as likely, the list is in the order of a dictionary."""
    model = fine(rows=1, heads=2, spread=0.0)
    got = lists(decode(model, BeamSearch(8), 2))[0]
    assert got[0][0] == (EOS,)
    expected = [(a, b) for a in (0, 1) for b in range(VOCABULARY)]
    assert [text for text, _ in got[1:]] == expected[:7]
    # A prefix beam leaves greedy's text by every token once; of equals what was found first stays.
    found = lists(decode(model, PrefixBeam(4), 2))[0]
    assert found[0][0] == (EOS,)
    assert [text for text, _ in found[1:]] == [(0, 0), (1, 0), (3, 0)]


@BOTH
def test_rows_slack_and_garbage_change_nothing(strategy):
    model = fine()
    expected = decode(model, strategy)
    order = np.array([3, 1, 0, 2])
    shuffled = decode(model.replace(toy=model.toy.rows(order)), strategy)
    other = model.replace(toy=model.toy.replace(garbage=jnp.int32(77), slack=5))
    for a, b, c in zip(
        jax.tree.leaves((expected.tokens, expected.calls, expected.nbest)),
        jax.tree.leaves((shuffled.tokens, shuffled.calls, shuffled.nbest)),
        jax.tree.leaves((lambda d: (d.tokens, d.calls, d.nbest))(decode(other, strategy))),
        strict=True,
    ):
        np.testing.assert_array_equal(b, a[order])
        np.testing.assert_array_equal(c, a)


@BOTH
def test_filler_rows_do_nothing(strategy):
    model = fine()
    active = jnp.array([True, False, True, True])
    got = decode(model, strategy, LIMIT, active)
    assert got.calls[1] == got.length[1] == 0
    assert not np.any(got.nbest.real[1])
    whole = decode(model, strategy)
    np.testing.assert_array_equal(got.tokens[2], whole.tokens[2])
    assert got.calls[2] == whole.calls[2]


@BOTH
def test_the_best_hypothesis_is_the_one_returned(strategy):
    got = decode(fine(), strategy)
    np.testing.assert_array_equal(got.tokens, got.nbest.tokens[:, 0])
    np.testing.assert_array_equal(got.length, got.nbest.length[:, 0])
    for call, length, calls in zip(got.call, got.length, got.calls, strict=True):
        assert 1 <= call[0] <= call[length - 1] <= calls
        assert (np.diff(call[:length]) >= 0).all()
        assert not call[length:].any()


def test_one_program_serves_every_power():
    decode_rows.clear_cache()
    for power in (0.0, 0.5, 1.0):
        decode(fine(), PrefixBeam(2, power))
    assert decode_rows._cache_size() == 1


def test_a_search_from_ctc_needs_what_it_reads():
    with pytest.raises(DraftsError, match="take verify or prefix_beam"):
        decode(fine(), PrefixBeam(2, ctc_width=4))
