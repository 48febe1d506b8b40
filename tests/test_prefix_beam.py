"""Prefix beam search against plain Python, brute force and greedy decoding, on toy models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mtp_jax.decoding import Decoded, Greedy, PrefixBeam, Verify
from tests import toy
from tests.toy import EOS, PRIME, VOCABULARY, mix

LIMIT = 9


@struct.dataclass
class Fine:
    """A `Toy` whose logits are drawn finely, so that no two scores are equal.

    Attributes:
        toy: the model of prefixes.
        spread: float32, of the logits: the greater, the surer every head.
        agree: float32 in [0, 1], how far later heads know what head 1 will say.
    """

    toy: toy.Toy
    spread: jax.Array
    agree: jax.Array

    def model(self):
        def next_token(hidden):
            return self.logits(hidden[..., 0, None], jnp.arange(VOCABULARY))

        def later_tokens(hidden):
            state, position = hidden[..., :1], hidden[..., 1:]
            out = []
            for head in range(2, self.toy.heads + 1):  # goes on by head 1's best token
                token = jnp.argmax(self.logits(state, jnp.arange(VOCABULARY)), -1, keepdims=True)
                state = (state + (token + 1) * toy.weight(position)) % PRIME
                position = position + 1
                own = self.logits(state + 17 * head, jnp.arange(VOCABULARY))
                right = self.logits(state, jnp.arange(VOCABULARY))
                out.append(self.agree * right + (1 - self.agree) * own)
            if not out:
                return jnp.zeros((*hidden.shape[:-1], 0, VOCABULARY))
            return jnp.stack(out, axis=-2)

        model = self.toy.model()
        return model._replace(next_token=next_token, later_tokens=later_tokens)

    def logits(self, state, token):
        drawn = mix(state + mix(token * 97 + self.toy.seed)) / PRIME
        return (self.spread * drawn).astype(jnp.float32)


def fine(rows=4, heads=3, seed=0, spread=6.0, agree=0.8, **more) -> Fine:
    made = toy.make(rows, heads, seed=seed, **more)
    return Fine(made, jnp.float32(spread), jnp.float32(agree))


# Tiny programs take longer to optimize than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(quick_jit, static_argnums=2)
def decode(model, strategy, limit=LIMIT, active=None) -> Decoded:
    shape = getattr(model, "toy", model).prompt.shape
    active = jnp.ones(shape[0], bool) if active is None else active
    return strategy.decode(model.model(), active, limit)


@quick_jit
def log_probs(model: Fine, state: jax.Array, position: jax.Array) -> jax.Array:
    """Of all heads behind a prefix: float32[M, V]."""
    seen, hidden = model.model(), jnp.stack([state, position])
    logits = [seen.next_token(hidden)[None], seen.later_tokens(hidden)]
    return jax.nn.log_softmax(jnp.concatenate(logits))


class Plain:
    """One row of a `Fine` as plain Python over lists of tokens."""

    def __init__(self, model: Fine, row: int):
        self.model, self.row = model, toy.by_hand(model.toy)[row]
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def heads(self, text: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities [M, V] behind `text`."""
        if text not in self._known:
            position = len(self.row.prompt) + len(text)
            state = self.row._state(list(text))
            self._known[text] = np.asarray(log_probs(self.model, state, position))
        return self._known[text]

    def score(self, text: tuple[int, ...]) -> float:
        """Head 1's log-probability of `text`."""
        return sum(float(self.heads(text[:i])[0, t]) for i, t in enumerate(text))

    def beam(self, beams: int, tau: float, power: float, limit: int):
        """The search as its docstring tells it: hypotheses (text, score), and calls."""

        def over(text):
            return bool(text) and (text[-1] == EOS or len(text) >= limit)

        def best(beam, heads):
            """The K best (text, score, parent) of all continuations."""
            found = [(text, score, text) for text, score in beam if over(text)]
            for text, score in beam:
                if not over(text):
                    for token, log_prob in enumerate(heads(text)):
                        found.append(((*text, token), score + float(log_prob), text))
            return sorted(found, key=rank, reverse=True)[:beams]

        def rank(hypothesis):
            text, score = hypothesis[:2]
            return score / max(len(text), 1) ** power

        def scored(texts):
            return [(text, self.score(text)) for text in dict.fromkeys(texts)]

        texts, base, calls = [()], 0, 0
        while True:
            calls += 1
            kept = 1
            depth = max(map(len, texts)) - base
            for level in range(1, min(depth, self.model.toy.heads)):
                prefixes = scored([text[: base + level] for text in texts])
                choice = best(prefixes, lambda text: self.heads(text)[0])
                shares = np.exp([score for _, score, _ in choice])
                fed = {text[: base + level + 1] for text in texts}
                held = [text in fed for text, _, _ in choice]
                if np.sum(shares * held) / np.sum(shares) < tau:
                    break
                kept += 1
            beam = scored([text[: base + kept] for text in texts])
            if calls > 1 and all(over(text) for text, _ in beam):
                return sorted(beam, key=rank, reverse=True), calls
            base = max(len(text) for text, _ in beam if not over(text))
            root = {text: text for text, _ in beam}
            for m in range(self.model.toy.heads):
                choice = best(beam, lambda text, m=m, root=root: self.heads(root[text])[m])
                root = {text: root[parent] for text, _, parent in choice}
                beam = [hypothesis[:2] for hypothesis in choice]
            texts = [text for text, _ in beam]
            if all(over(text) and len(text) <= base + 1 for text in texts):
                return sorted(scored(texts), key=rank, reverse=True), calls


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


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.6, 0.95])
@pytest.mark.parametrize(("beams", "heads"), [(1, 3), (2, 1), (3, 4), (5, 2)])
def test_equals_plain_python(beams, heads, tau, power):
    for seed in range(3):
        model = fine(heads=heads, seed=seed)
        got = decode(model, PrefixBeam(beams, jnp.float32(tau), jnp.float32(power)))
        for row, hypotheses in enumerate(lists(got)):
            expected, calls = Plain(model, row).beam(beams, tau, power, LIMIT)
            assert [text for text, _ in hypotheses] == [text for text, _ in expected]
            assert [s for _, s in hypotheses] == pytest.approx([s for _, s in expected], rel=1e-4)
            assert got.calls[row] == calls


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_a_beam_that_holds_every_prefix_equals_brute_force(heads, tau):
    """By head 1, whatever the later heads say."""
    limit = 3
    model = fine(rows=2, heads=heads, agree=0.2)
    texts = {
        text[: text.index(EOS) + 1] if EOS in text else text
        for text in itertools.product(range(VOCABULARY), repeat=limit)
    }
    got = lists(decode(model, PrefixBeam(len(texts), jnp.float32(tau)), limit))
    for row, hypotheses in enumerate(got):
        plain = Plain(model, row)
        expected = sorted(((plain.score(text), text) for text in texts), reverse=True)
        assert [text for text, _ in hypotheses] == [text for _, text in expected]
        scores = [score for score, _ in expected]
        assert [score for _, score in hypotheses] == pytest.approx(scores, rel=1e-4)
        assert sum(np.exp([score for _, score in hypotheses])) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("eos_every", [1, 3, 9])
@pytest.mark.parametrize(("heads", "like"), [(1, Greedy(1)), (4, Verify())])
def test_one_beam_is_greedy(heads, like, eos_every):
    """With M = 1 greedy itself, else verification, call by call; ties abound in this toy."""
    for drafts in toy.DRAFTS.values():
        model = toy.make(6, heads, eos_every=eos_every, drafts=drafts)
        expected, greedy = decode(model, like), decode(model, Greedy(width=heads))
        got = decode(model, PrefixBeam(1, jnp.float32(0.5)))
        np.testing.assert_array_equal(got.tokens, greedy.tokens)
        np.testing.assert_array_equal(got.length, greedy.length)
        assert np.all(got.calls <= greedy.calls)
        if heads == 1:
            np.testing.assert_array_equal(got.calls, expected.calls)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9])
def test_scores_are_head_1s_and_no_two_hypotheses_are_alike(tau):
    for seed in range(4):
        model = fine(heads=4, seed=seed)
        got = decode(model, PrefixBeam(6, jnp.float32(tau)))
        for row, hypotheses in enumerate(lists(got)):
            plain = Plain(model, row)
            for text, score in hypotheses:
                assert score == pytest.approx(plain.score(text), rel=1e-4)
                assert EOS not in text[:-1]
                assert text[-1] == EOS or len(text) == LIMIT
            assert len({text for text, _ in hypotheses}) == len(hypotheses) == 6
            ranked = [score for _, score in hypotheses]
            assert ranked == sorted(ranked, reverse=True)


def test_sure_heads_save_calls_and_change_nothing():
    """Heads that know what head 1 will say, and are sure of it, as an ordinary search is."""
    model = fine(rows=6, heads=4, spread=60.0, agree=1.0)
    ordinary = decode(model, PrefixBeam(3, heads=1))
    fast = decode(model, PrefixBeam(3, jnp.float32(0.9)))
    np.testing.assert_array_equal(fast.tokens, ordinary.tokens)
    assert 2 * fast.calls.sum() < ordinary.calls.sum()


def test_one_head_is_the_ordinary_search():
    model = fine(heads=4)
    got = decode(model, PrefixBeam(3, heads=1))
    alone = decode(model.replace(toy=model.toy.replace(heads=1)), PrefixBeam(3))
    np.testing.assert_array_equal(got.nbest.tokens, alone.nbest.tokens)
    np.testing.assert_array_equal(got.calls, alone.calls)
    assert got.accepted.shape == (4, 3)


def test_ties_go_to_the_lower_token():
    """Where every text of a length is as likely, the list is in the order of a dictionary."""
    model = fine(rows=1, heads=2, spread=0.0)
    got = lists(decode(model, PrefixBeam(8, jnp.float32(0)), 2))[0]
    assert got[0][0] == (EOS,)
    expected = [(a, b) for a in (0, 1) for b in range(VOCABULARY)]
    assert [text for text, _ in got[1:]] == expected[:7]


def test_rows_slack_and_garbage_change_nothing():
    model = fine(rows=5, heads=3)
    strategy = PrefixBeam(4, jnp.float32(0.5))
    expected = decode(model, strategy)
    order = np.array([3, 1, 4, 0, 2])
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


def test_filler_rows_do_nothing():
    model = fine(rows=3)
    active = jnp.array([True, False, True])
    got = decode(model, PrefixBeam(3), LIMIT, active)
    assert got.calls[1] == got.length[1] == 0
    assert not np.any(got.nbest.real[1])
    whole = decode(model, PrefixBeam(3))
    np.testing.assert_array_equal(got.tokens[2], whole.tokens[2])


def test_the_best_hypothesis_is_the_one_returned():
    got = decode(fine(), PrefixBeam(4, jnp.float32(0.3), jnp.float32(1)))
    np.testing.assert_array_equal(got.tokens, got.nbest.tokens[:, 0])
    np.testing.assert_array_equal(got.length, got.nbest.length[:, 0])
    for call, length, calls in zip(got.call, got.length, got.calls, strict=True):
        assert 1 <= call[0] <= call[length - 1] <= calls
        assert (np.diff(call[:length]) >= 0).all()
        assert not call[length:].any()


def test_one_program_serves_every_tau():
    decode.clear_cache()
    for tau in (0.1, 0.5, 2.0):
        decode(fine(), PrefixBeam(2, jnp.float32(tau), jnp.float32(tau)))
    assert decode._cache_size() == 1
