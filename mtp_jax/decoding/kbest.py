"""Prefix beam search: an n-best list in several times fewer decoder calls than a beam's."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import draft_source, text_drafts
from mtp_jax.decoding.edit_distance import DraftText
from mtp_jax.decoding.interface import (
    Decoded,
    DecoderFunctions,
    Emitted,
    NBest,
    most_likely,
    normalized,
)
from mtp_jax.decoding.verify_loop import Likelihood, Verification, verify_loop
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class PrefixBeam:
    """A k-best search that branches from known hypotheses; no prefixes merge in it.

    The first hypothesis is the one that verification gives, which is greedy's. Head 1 was asked at
    each of its tokens, so the search knows where it might have continued differently, and with what
    probability. Each *round* takes the K best branches: a branch is a prefix of a known hypothesis
    followed by another token. All branches of a round are completed at once, by the tokens that
    head 1 predicts. The drafts of a branch are the rest of its parent hypothesis, aligned again by
    edit distance, and a call adds up to S tokens. A branch that is less likely than K complete
    hypotheses is pruned. The best K of all hypotheses stay.

    Branches are ranked by the log-probability of their parent with the log-probability of one token
    replaced: what would result if the rest were as likely as before. The search ends when no branch
    is ranked above the worst of K hypotheses. A prefix belongs to the hypothesis with which it
    shares the most tokens, and each branch is tried once (Lawler, 1972), so the search finds no
    text twice and has nothing to merge.

    All scores are log-probabilities of head 1. Drafts change the number of calls, and neither
    scores nor hypotheses. With K = 1 the result is greedy's text; with K and the number of rounds
    large enough it is that of brute force. (arXiv 2409.08148 has a prefix-based beam search and
    does not say how prefixes compete; docs/mwer.md compares our readings of it.)

    Attributes:
        beams: K.
        length_power: hypotheses are ranked by log-probability / length ** power; 0 compares
            probabilities, 1 the mean over tokens.
        width: S of the rounds.
        rounds: at most so many.
        ctc_width: drafts of the first hypothesis, as in `Verify`.
    """

    beams: int = struct.field(pytree_node=False, default=4)
    length_power: float | jax.Array = 0.0
    width: int = struct.field(pytree_node=False, default=16)
    rounds: int = struct.field(pytree_node=False, default=3)
    ctc_width: int = struct.field(pytree_node=False, default=0)

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""
        state = self._greedy(model, active, max_tokens)
        if self.beams > 1:
            state = jax.lax.while_loop(
                lambda state: jnp.any(state.branches.good) & (state.round < self.rounds),
                lambda state: self._round(model, state),
                state,
            )
        order = jnp.argsort(-self._rank(state.hypotheses), axis=1, stable=True)
        best = state.hypotheses.gather(order)
        none = jnp.zeros((len(active), model.heads - 1), jnp.int32)
        return Decoded(
            tokens=best.tokens[:, 0],
            length=best.length[:, 0],
            calls=state.calls,
            proposed=none,
            accepted=none,
            loop_steps=state.steps,
            call=best.call[:, 0],
            nbest=NBest(best.tokens, best.length, best.likelihood.log_probs, best.real),
        )

    def _greedy(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> _State:
        """Before the first round: greedy's text alone."""
        rows = len(active)
        source = draft_source(model, self.ctc_width)
        hidden, cache = model.prefill(0)
        logits = model.next_token(hidden)
        predicted = most_likely(logits)[:, None]
        text, _ = Emitted.nothing(active, max_tokens).emit(
            predicted, jnp.ones(rows, jnp.int32), model.eos
        )
        # Where K texts part there are K tokens at most.
        alternatives = max(1, min(self.beams, logits.shape[-1]) - 1)
        likelihood = Likelihood.nothing(rows, max_tokens, alternatives)
        likelihood = likelihood.put(jnp.zeros((rows, 1), jnp.int32), logits[:, None])
        branch = cache.fork(1, max_tokens)
        start = Verification.of(source, text, hidden, predicted, branch, likelihood)
        end = verify_loop(model, source, start)

        def first_of_many(x: jax.Array) -> jax.Array:
            return jnp.pad(x[:, None], ((0, 0), (0, self.beams - 1), *[(0, 0)] * (x.ndim - 1)))

        assert end.likelihood is not None
        one = _Hypotheses(end.text.tokens, end.text.call, end.text.length, active, end.likelihood)
        hypotheses = jax.tree.map(first_of_many, one)
        return _State(
            hypotheses=hypotheses,
            branches=self._branches(hypotheses, model.eos),
            cache=end.cache.gather_rows(jnp.zeros((rows, self.beams), jnp.int32)),
            calls=end.calls + active,
            steps=end.steps + 1,
            round=jnp.int32(0),
        )

    def _round(self, model: DecoderFunctions, state: _State) -> _State:
        """Completes the K best branches, and keeps the best K of all hypotheses."""
        drafter_state, prefixes = state.hypotheses.branch(state.branches)
        new, end = self._followed(model, state, prefixes)
        # Calls are counted utterance by utterance: that of its last row to finish is its last.
        call = jnp.where(new.call > 0, new.call + state.calls[:, None, None], prefixes.call)
        new = dataclasses.replace(new, call=call)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), drafter_state, new)
        best = jax.lax.top_k(self._rank(both), self.beams)[1]
        hypotheses = both.gather(best)
        return _State(
            hypotheses=hypotheses,
            branches=self._branches(hypotheses, model.eos),
            cache=state.cache.concatenate(end.cache).gather_rows(best),
            calls=state.calls + jnp.max(end.calls.reshape(best.shape), axis=1),
            steps=state.steps + end.steps,
            round=state.round + 1,
        )

    def _followed(
        self, model: DecoderFunctions, state: _State, prefixes: _Hypotheses
    ) -> tuple[_Hypotheses, Verification]:
        """The branches, completed by the tokens that head 1 predicts.

        The drafts are the rest of the parent hypothesis behind the token that was replaced.

        Returns:
            The texts, whose ``call`` counts those of the round and is 0 in the prefix; and how the
            loop ended, a row a text.
        """
        branches, eos = state.branches, model.eos
        rows, beams, limit = prefixes.tokens.shape

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(rows * beams, *x.shape[2:])

        def by_utterance(x: jax.Array) -> jax.Array:
            return x.reshape(rows, beams, *x.shape[1:])

        parent = jax.tree.map(flat, state.hypotheses.gather(branches.parent))
        last = jnp.maximum(parent.length - 1, 0)[:, None]
        complete = jnp.take_along_axis(parent.tokens, last, axis=1)[:, 0] == eos
        reading = DraftText(parent.tokens, parent.length - complete)
        # Of what comes before the place: it is the beginning of what is read.
        distances = jnp.abs(jnp.arange(limit + 1) - flat(branches.place)[:, None])
        source = text_drafts(reading, self.width, eos, distances)
        over = (branches.token == eos) | (prefixes.length >= limit) | ~branches.good
        text = Emitted(
            tokens=flat(prefixes.tokens),
            length=flat(prefixes.length),
            finished=flat(over),
            call=jnp.zeros((rows * beams, limit), jnp.int32),
            calls=jnp.int32(0),
        )
        cache = dataclasses.replace(
            state.cache.gather_rows(branches.parent), length=flat(branches.place)
        )
        likelihood = jax.tree.map(flat, prefixes.likelihood)
        unseen = jnp.zeros((rows * beams, 1))  # drafts that are read look at no hidden state
        start = Verification.of(
            source, text, unseen, flat(branches.token)[:, None], cache, likelihood
        )
        end = verify_loop(
            model, source, start, should_prune=functools.partial(self._should_prune, state)
        )
        assert end.likelihood is not None
        texts = _Hypotheses(
            tokens=by_utterance(end.text.tokens),
            call=by_utterance(end.text.call),
            length=by_utterance(end.text.length),
            real=branches.good,
            likelihood=jax.tree.map(by_utterance, end.likelihood),
        )
        return texts, end

    def _should_prune(self, state: _State, now: Verification) -> jax.Array:
        """bool[B K]: less likely than K complete texts, and so never in the list."""
        assert now.likelihood is not None
        shape = state.branches.good.shape
        score = jnp.sum(now.likelihood.log_probs, axis=1).reshape(shape)
        rank = normalized(score, now.text.length.reshape(shape), self.length_power)
        complete = state.branches.good & now.text.finished.reshape(shape)
        ranks = [self._rank(state.hypotheses), jnp.where(complete, rank, -jnp.inf)]
        worst = jax.lax.top_k(jnp.concatenate(ranks, axis=1), self.beams)[0][:, -1:]
        # A text only loses probability, and gains at most by being as long as may be.
        longest = jnp.full_like(now.text.length, now.text.limit).reshape(shape)
        return (normalized(score, longest, self.length_power) < worst).reshape(-1)

    def _rank(self, texts: _Hypotheses) -> jax.Array:
        return normalized(texts.score, texts.length, self.length_power)

    def _branches(self, hypotheses: _Hypotheses, eos: int) -> _Branches:
        """The K best that promise more than the worst of K hypotheses."""
        rows, beams, limit, alternatives = hypotheses.likelihood.alternatives.shape
        upto = jnp.cumsum(hypotheses.likelihood.log_probs, axis=2)
        before = upto - hypotheses.likelihood.log_probs
        rest = jnp.where(hypotheses.real, upto[:, :, -1], 0)[..., None] - upto
        ends = hypotheses.likelihood.alternatives == eos  # has no rest
        total = before[..., None] + hypotheses.likelihood.alternative_log_probs
        total += jnp.where(ends, 0, rest[..., None])
        place = jnp.arange(limit)[:, None]
        length = jnp.where(ends, place + 1, hypotheses.length[..., None, None])
        rank = normalized(total, length, self.length_power)
        there = hypotheses.real[..., None, None] & (place < hypotheses.length[..., None, None])
        rank = jnp.where(there, rank, -jnp.inf).reshape(rows, -1)
        best, chosen = jax.lax.top_k(rank, beams)
        good = (best > jnp.min(self._rank(hypotheses), axis=1, keepdims=True)) & (best > -jnp.inf)
        parent, place, other = jnp.unravel_index(chosen, (beams, limit, alternatives))
        at = jnp.arange(rows)[:, None], parent, place, other
        token = hypotheses.likelihood.alternatives[at]
        log_prob = hypotheses.likelihood.alternative_log_probs[at]
        return _Branches(parent, place, other, token, log_prob, good)


class _Branches(NamedTuple):
    """K prefixes an utterance: the beginning of a hypothesis, and another token.

    Attributes:
        parent: int32[B, K], the hypothesis that is branched from.
        place: int32[B, K], of its token that is replaced.
        other: int32[B, K], the number of the other token in this place.
        token: int32[B, K]; `log_prob`: float32[B, K] of it.
        good: bool[B, K], whether the prefix promises anything; the rest means nothing if not.
    """

    parent: jax.Array
    place: jax.Array
    other: jax.Array
    token: jax.Array
    log_prob: jax.Array
    good: jax.Array


@struct.dataclass
class _Hypotheses:
    """K hypotheses an utterance.

    Attributes:
        tokens: int32[B, K, L]; `call`: int32[B, K, L], that emitted each; `length`: int32[B, K].
        real: bool[B, K]; the alternatives are places not gathered.
        likelihood: of each, and of the alternatives that were not tried yet.
    """

    tokens: jax.Array
    call: jax.Array
    length: jax.Array
    real: jax.Array
    likelihood: Likelihood

    @property
    def score(self) -> jax.Array:
        """float32[B, K] log-probabilities."""
        return jnp.where(self.real, jnp.sum(self.likelihood.log_probs, axis=2), -jnp.inf)

    def gather(self, places: jax.Array) -> _Hypotheses:
        """Those at int32[B, N] `places`."""
        row = jnp.arange(len(places))[:, None]
        gathered: _Hypotheses = jax.tree.map(lambda x: x[row, places], self)
        return gathered

    def branch(self, branches: _Branches) -> tuple[_Hypotheses, _Hypotheses]:
        """Parents whose branches count as tried, and the branches as hypotheses of their own."""
        row = jnp.arange(len(branches.parent))[:, None]
        kept = jnp.where(branches.good, branches.parent, self.length.shape[1])
        tried = self.likelihood.alternative_log_probs.at[row, kept, branches.place, branches.other]
        likelihood = dataclasses.replace(
            self.likelihood, alternative_log_probs=tried.set(-jnp.inf, mode="drop")
        )
        parent = self.gather(branches.parent)
        slot = jnp.arange(self.tokens.shape[2])
        before, here = slot < branches.place[..., None], slot == branches.place[..., None]

        def cut(x: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(before, x, jnp.where(here, new[..., None], 0))

        call = jnp.take_along_axis(parent.call, branches.place[..., None], axis=2)[..., 0]
        prefix = _Hypotheses(
            tokens=cut(parent.tokens, branches.token),
            call=cut(parent.call, call),
            length=branches.place + 1,
            real=branches.good,
            likelihood=Likelihood(
                log_probs=cut(parent.likelihood.log_probs, branches.log_prob),
                alternatives=parent.likelihood.alternatives,
                # Branches at earlier tokens belong to the parent.
                alternative_log_probs=jnp.full_like(
                    parent.likelihood.alternative_log_probs, -jnp.inf
                ),
            ),
        )
        return dataclasses.replace(self, likelihood=likelihood), prefix


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        hypotheses: the hypotheses.
        branches: of the next round.
        cache: of what they were fed, a row each.
        calls: int32[B]; steps: int32; round: int32.
    """

    hypotheses: _Hypotheses
    branches: _Branches
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
    round: jax.Array
