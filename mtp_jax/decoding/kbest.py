"""Prefix beam search: an n-best list in several times fewer decoder calls than a beam's."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.drafts import drafts_of_reading, source_of
from mtp_jax.decoding.edit_distance import Reading
from mtp_jax.decoding.interface import Decoded, Emitted, Model, NBest, most_likely, normalized
from mtp_jax.decoding.verify_loop import Likelihood, Verification, verified
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class PrefixBeam:
    """K hypotheses an utterance: greedy's, and those that leave a known one somewhere.

    The first hypothesis is verification's. Where it might have gone another way is known then, and
    how likely: head 1 was asked at every token. So in each *round* the K best prefixes that end in
    another token than a known hypothesis has there go on, all at once, by what head 1 says most
    likely. Drafted is what comes next in the hypothesis that they left, aligned anew by edit
    distance; a call adds up to S tokens to each. One that has become less likely than K complete
    hypotheses are is given up. The best K of all hypotheses stay.

    *Best* among prefixes is by what would come out if the rest were as likely as it was in the
    hypothesis left: its log-probability with one token's replaced. A round in which none promises
    more than the worst of K hypotheses ends the search. A prefix belongs to the hypothesis whose
    first tokens it shares longest, and is tried once (Lawler, 1972), so no text is found twice and
    nothing is to be merged.

    Scores are head 1's. Drafts change neither these nor the list, only how many calls it takes.
    With K = 1 this is verification, and the text greedy's; with K large enough to hold every text,
    and rounds enough, it is brute force. (arXiv 2409.08148 has a prefix-based beam search and
    leaves open how prefixes compete; docs/mwer.md compares readings.)

    Attributes:
        beams: K.
        length_power: hypotheses are compared by log-probability over length to this power; 0
            compares probabilities, 1 means a token.
        width: S of the rounds.
        rounds: at most so many.
        ctc_width: drafts of the first hypothesis, as in `Verify`.
    """

    beams: int = struct.field(pytree_node=False, default=4)
    length_power: float | jax.Array = 0.0
    width: int = struct.field(pytree_node=False, default=16)
    rounds: int = struct.field(pytree_node=False, default=3)
    ctc_width: int = struct.field(pytree_node=False, default=0)

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""
        state = self._greedy(model, active, max_tokens)
        if self.beams > 1:
            state = jax.lax.while_loop(
                lambda state: jnp.any(state.left.good) & (state.round < self.rounds),
                lambda state: self._round(model, state),
                state,
            )
        order = jnp.argsort(-self._rank(state.found), axis=1, stable=True)
        best = state.found.taken(order)
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

    def _greedy(self, model: Model, active: jax.Array, max_tokens: int) -> _State:
        """Before the first round: greedy's text alone."""
        rows = len(active)
        source = source_of(model, self.ctc_width)
        hidden, cache = model.prefill(0)
        logits = model.next_token(hidden)
        said = most_likely(logits)[:, None]
        text, _ = Emitted.nothing(active, max_tokens).emit(
            said, jnp.ones(rows, jnp.int32), model.eos
        )
        # Where K texts part there are K tokens at most.
        others = max(1, min(self.beams, logits.shape[-1]) - 1)
        likelihood = Likelihood.nothing(rows, max_tokens, others)
        likelihood = likelihood.put(jnp.zeros((rows, 1), jnp.int32), logits[:, None])
        branch = cache.branched(1, max_tokens)
        start = Verification.of(source, text, hidden, said, branch, likelihood)
        end = verified(model, source, start)

        def first_of_many(x: jax.Array) -> jax.Array:
            return jnp.pad(x[:, None], ((0, 0), (0, self.beams - 1), *[(0, 0)] * (x.ndim - 1)))

        assert end.likelihood is not None
        one = _Texts(end.text.tokens, end.text.call, end.text.length, active, end.likelihood)
        found = jax.tree.map(first_of_many, one)
        return _State(
            found=found,
            left=self._departures(found, model.eos),
            cache=end.cache.moved(jnp.zeros((rows, self.beams), jnp.int32)),
            calls=end.calls + active,
            steps=end.steps + 1,
            round=jnp.int32(0),
        )

    def _round(self, model: Model, state: _State) -> _State:
        """Goes on from the K best prefixes, and keeps the best K of all hypotheses."""
        known, prefixes = state.found.leaving(state.left)
        new, end = self._followed(model, state, prefixes)
        # Calls are counted utterance by utterance: that of its last row to finish is its last.
        call = jnp.where(new.call > 0, new.call + state.calls[:, None, None], prefixes.call)
        new = dataclasses.replace(new, call=call)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), known, new)
        best = jax.lax.top_k(self._rank(both), self.beams)[1]
        found = both.taken(best)
        return _State(
            found=found,
            left=self._departures(found, model.eos),
            cache=state.cache.beside(end.cache).moved(best),
            calls=state.calls + jnp.max(end.calls.reshape(best.shape), axis=1),
            steps=state.steps + end.steps,
            round=state.round + 1,
        )

    def _followed(
        self, model: Model, state: _State, prefixes: _Texts
    ) -> tuple[_Texts, Verification]:
        """The prefixes, and what head 1 says most likely behind them.

        Drafted is the rest of the hypothesis left, whose own token in the place is given up.

        Returns:
            The texts, whose ``call`` counts those of the round and is 0 in the prefix; and how the
            loop ended, a row a text.
        """
        left, eos = state.left, model.eos
        rows, beams, limit = prefixes.tokens.shape

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(rows * beams, *x.shape[2:])

        def by_utterance(x: jax.Array) -> jax.Array:
            return x.reshape(rows, beams, *x.shape[1:])

        parent = jax.tree.map(flat, state.found.taken(left.parent))
        last = jnp.maximum(parent.length - 1, 0)[:, None]
        complete = jnp.take_along_axis(parent.tokens, last, axis=1)[:, 0] == eos
        reading = Reading(parent.tokens, parent.length - complete)
        # Of what comes before the place: it is the beginning of what is read.
        distances = jnp.abs(jnp.arange(limit + 1) - flat(left.place)[:, None])
        source = drafts_of_reading(reading, self.width, eos, distances)
        over = (left.token == eos) | (prefixes.length >= limit) | ~left.good
        text = Emitted(
            tokens=flat(prefixes.tokens),
            length=flat(prefixes.length),
            finished=flat(over),
            call=jnp.zeros((rows * beams, limit), jnp.int32),
            calls=jnp.int32(0),
        )
        cache = dataclasses.replace(state.cache.moved(left.parent), length=flat(left.place))
        likelihood = jax.tree.map(flat, prefixes.likelihood)
        unseen = jnp.zeros((rows * beams, 1))  # drafts that are read look at no hidden state
        start = Verification.of(source, text, unseen, flat(left.token)[:, None], cache, likelihood)
        end = verified(model, source, start, hopeless=functools.partial(self._hopeless, state))
        assert end.likelihood is not None
        texts = _Texts(
            tokens=by_utterance(end.text.tokens),
            call=by_utterance(end.text.call),
            length=by_utterance(end.text.length),
            real=left.good,
            likelihood=jax.tree.map(by_utterance, end.likelihood),
        )
        return texts, end

    def _hopeless(self, state: _State, now: Verification) -> jax.Array:
        """bool[B K]: less likely than K complete texts, and so never in the list."""
        assert now.likelihood is not None
        shape = state.left.good.shape
        score = jnp.sum(now.likelihood.log_probs, axis=1).reshape(shape)
        rank = normalized(score, now.text.length.reshape(shape), self.length_power)
        complete = state.left.good & now.text.finished.reshape(shape)
        ranks = [self._rank(state.found), jnp.where(complete, rank, -jnp.inf)]
        worst = jax.lax.top_k(jnp.concatenate(ranks, axis=1), self.beams)[0][:, -1:]
        # A text only loses probability, and gains at most by being as long as may be.
        longest = jnp.full_like(now.text.length, now.text.limit).reshape(shape)
        return (normalized(score, longest, self.length_power) < worst).reshape(-1)

    def _rank(self, texts: _Texts) -> jax.Array:
        return normalized(texts.score, texts.length, self.length_power)

    def _departures(self, found: _Texts, eos: int) -> _Departures:
        """The K best that promise more than the worst of K hypotheses."""
        rows, beams, limit, others = found.likelihood.others.shape
        upto = jnp.cumsum(found.likelihood.log_probs, axis=2)
        before = upto - found.likelihood.log_probs
        rest = jnp.where(found.real, upto[:, :, -1], 0)[..., None] - upto
        ends = found.likelihood.others == eos  # has no rest
        total = before[..., None] + found.likelihood.other_log_probs
        total += jnp.where(ends, 0, rest[..., None])
        place = jnp.arange(limit)[:, None]
        length = jnp.where(ends, place + 1, found.length[..., None, None])
        rank = normalized(total, length, self.length_power)
        there = found.real[..., None, None] & (place < found.length[..., None, None])
        rank = jnp.where(there, rank, -jnp.inf).reshape(rows, -1)
        best, chosen = jax.lax.top_k(rank, beams)
        good = (best > jnp.min(self._rank(found), axis=1, keepdims=True)) & (best > -jnp.inf)
        parent, place, other = jnp.unravel_index(chosen, (beams, limit, others))
        at = jnp.arange(rows)[:, None], parent, place, other
        token = found.likelihood.others[at]
        log_prob = found.likelihood.other_log_probs[at]
        return _Departures(parent, place, other, token, log_prob, good)


class _Departures(NamedTuple):
    """K prefixes an utterance: the beginning of a hypothesis, and another token.

    Attributes:
        parent: int32[B, K], the hypothesis left.
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
class _Texts:
    """K hypotheses an utterance.

    Attributes:
        tokens: int32[B, K, L]; `call`: int32[B, K, L], that emitted each; `length`: int32[B, K].
        real: bool[B, K]; the others are places not taken.
        likelihood: of each, and of the tokens by which it has not been left yet.
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

    def taken(self, places: jax.Array) -> _Texts:
        """Those at int32[B, N] `places`."""
        row = jnp.arange(len(places))[:, None]
        taken: _Texts = jax.tree.map(lambda x: x[row, places], self)
        return taken

    def leaving(self, left: _Departures) -> tuple[_Texts, _Texts]:
        """These, no more to be left by the same tokens, and the prefixes as texts of their own."""
        row = jnp.arange(len(left.parent))[:, None]
        kept = jnp.where(left.good, left.parent, self.length.shape[1])
        tried = self.likelihood.other_log_probs.at[row, kept, left.place, left.other]
        likelihood = dataclasses.replace(
            self.likelihood, other_log_probs=tried.set(-jnp.inf, mode="drop")
        )
        parent = self.taken(left.parent)
        slot = jnp.arange(self.tokens.shape[2])
        before, here = slot < left.place[..., None], slot == left.place[..., None]

        def cut(x: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(before, x, jnp.where(here, new[..., None], 0))

        call = jnp.take_along_axis(parent.call, left.place[..., None], axis=2)[..., 0]
        prefix = _Texts(
            tokens=cut(parent.tokens, left.token),
            call=cut(parent.call, call),
            length=left.place + 1,
            real=left.good,
            likelihood=Likelihood(
                log_probs=cut(parent.likelihood.log_probs, left.log_prob),
                others=parent.likelihood.others,
                # Prefixes that end sooner belong to the hypothesis left.
                other_log_probs=jnp.full_like(parent.likelihood.other_log_probs, -jnp.inf),
            ),
        )
        return dataclasses.replace(self, likelihood=likelihood), prefix


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        found: the hypotheses.
        left: where, and for what, they are left in the next round.
        cache: of what they were fed, a row each.
        calls: int32[B]; steps: int32; round: int32.
    """

    found: _Texts
    left: _Departures
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
    round: jax.Array
