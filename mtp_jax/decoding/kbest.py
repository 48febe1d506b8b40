"""Prefix beam search: an n-best list in several times fewer decoder calls than a beam's."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.alignment import ERROR, Aligner, DraftText
from mtp_jax.decoding.drafts import draft_source, text_drafts
from mtp_jax.decoding.interface import Decoded, DecoderFunctions, NBest, best_of
from mtp_jax.decoding.text import Emitted, length_normalized, most_likely
from mtp_jax.decoding.verify_loop import Alternatives, Verification, verify_loop
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

    @property
    def name(self) -> str:
        """As in the registry."""
        return "prefix_beam_ctc" if self.ctc_width else "prefix_beam"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""
        state = self._greedy(model, active, max_tokens)
        if self.beams > 1:
            state = jax.lax.while_loop(
                lambda state: jnp.any(state.branches.real) & (state.round < self.rounds),
                lambda state: self._round(model, state),
                state,
            )
        order = jnp.argsort(-self._rank(state.hypotheses), axis=1, stable=True)
        best = state.hypotheses.gather(order)
        nbest = NBest(best.tokens, best.length, best.log_probs, best.real)
        return best_of(nbest, best.call, state.calls, state.steps, model.heads)

    def _greedy(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> _State:
        """The state before the first round: greedy's text alone."""
        rows = len(active)
        source = draft_source(model, self.ctc_width)
        hidden, cache = model.prefill(0)
        logits = model.next_token(hidden)
        first, log_prob = most_likely(logits)
        text, slots = Emitted.empty(active, max_tokens).emit(
            first[:, None], log_prob[:, None], jnp.ones(rows, jnp.int32), model.eos
        )
        # K hypotheses that part at one position have at most K different tokens there.
        count = max(1, min(self.beams, logits.shape[-1]) - 1)
        alternatives = Alternatives.empty(rows, max_tokens, count).put(slots, logits[:, None])
        start = Verification.start(
            source, text, hidden, first, cache.fork(1, max_tokens), alternatives
        )
        end = verify_loop(model, source, start)

        def first_of_many(x: jax.Array) -> jax.Array:
            return jnp.pad(x[:, None], ((0, 0), (0, self.beams - 1), *[(0, 0)] * (x.ndim - 1)))

        hypotheses = jax.tree.map(first_of_many, _Hypotheses.of(end, active))
        return _State(
            hypotheses=hypotheses,
            branches=self._best_branches(hypotheses, model.eos),
            cache=end.cache.gather_rows(jnp.zeros((rows, self.beams), jnp.int32)),
            calls=end.calls + active,
            steps=end.steps + 1,
            round=jnp.int32(0),
        )

    def _round(self, model: DecoderFunctions, state: _State) -> _State:
        """Completes the K best branches, and keeps the best K of all hypotheses."""
        known, prefixes = state.hypotheses.branch(state.branches)
        new, end = self._complete(model, state, prefixes)
        # Calls are counted per utterance: its calls are those of its last row to finish.
        call = jnp.where(new.call > 0, new.call + state.calls[:, None, None], prefixes.call)
        new = dataclasses.replace(new, call=call)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), known, new)
        best = jax.lax.top_k(self._rank(both), self.beams)[1]
        hypotheses = both.gather(best)
        return _State(
            hypotheses=hypotheses,
            branches=self._best_branches(hypotheses, model.eos),
            cache=state.cache.concatenate(end.cache).gather_rows(best),
            calls=state.calls + jnp.max(end.calls.reshape(best.shape), axis=1),
            steps=state.steps + end.steps,
            round=state.round + 1,
        )

    def _complete(
        self, model: DecoderFunctions, state: _State, prefixes: _Hypotheses
    ) -> tuple[_Hypotheses, Verification]:
        """The branches, completed by the tokens that head 1 predicts.

        The drafts are the rest of the parent hypothesis behind the token that was replaced.

        Returns:
            The hypotheses, whose ``call`` counts calls of the round and is 0 in the prefix; and the
            state at the end of the loop, with one row per hypothesis.
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
        # The prefix in front of the replaced token is a prefix of the parent.
        scores = ERROR * jnp.abs(jnp.arange(limit + 1) - flat(branches.place)[:, None])
        rest = Aligner(DraftText(parent.tokens, parent.length - complete), model.token_kinds)
        source = text_drafts(rest, self.width, eos, scores)
        ended = (branches.token == eos) | (prefixes.length >= limit) | ~branches.real
        text = Emitted(
            tokens=flat(prefixes.tokens),
            log_probs=flat(prefixes.log_probs),
            length=flat(prefixes.length),
            finished=flat(ended),
            call=jnp.zeros((rows * beams, limit), jnp.int32),
            calls=jnp.int32(0),
        )
        cache = dataclasses.replace(
            state.cache.gather_rows(branches.parent), length=flat(branches.place)
        )
        start = Verification.start(
            source,
            text,
            None,
            flat(branches.token),
            cache,
            jax.tree.map(flat, prefixes.alternatives),
        )
        end = verify_loop(
            model, source, start, should_prune=functools.partial(self._should_prune, state)
        )
        hypotheses = jax.tree.map(by_utterance, _Hypotheses.of(end, flat(branches.real)))
        return hypotheses, end

    def _should_prune(self, state: _State, now: Verification) -> jax.Array:
        """bool[B K]: less likely than K complete hypotheses, and so never in the list."""
        shape = state.branches.real.shape
        score = jnp.sum(now.text.log_probs, axis=1).reshape(shape)
        rank = length_normalized(score, now.text.length.reshape(shape), self.length_power)
        complete = state.branches.real & now.text.finished.reshape(shape)
        ranks = [self._rank(state.hypotheses), jnp.where(complete, rank, -jnp.inf)]
        worst = jax.lax.top_k(jnp.concatenate(ranks, axis=1), self.beams)[0][:, -1:]
        # A text only loses probability. Normalisation favours the greatest length most.
        longest = jnp.full_like(now.text.length, now.text.limit).reshape(shape)
        return (length_normalized(score, longest, self.length_power) < worst).reshape(-1)

    def _rank(self, hypotheses: _Hypotheses) -> jax.Array:
        return length_normalized(hypotheses.score, hypotheses.length, self.length_power)

    def _best_branches(self, hypotheses: _Hypotheses, eos: int) -> _Branches:
        """The K best branches that are ranked above the worst of K hypotheses."""
        alternatives, log_probs = hypotheses.alternatives, hypotheses.log_probs
        rows, beams, limit, count = alternatives.tokens.shape
        through = jnp.cumsum(log_probs, axis=2)
        before = through - log_probs
        rest = jnp.where(hypotheses.real, through[:, :, -1], 0)[..., None] - through
        ends = alternatives.tokens == eos  # nothing follows
        total = before[..., None] + alternatives.log_probs + jnp.where(ends, 0, rest[..., None])
        place = jnp.arange(limit)[:, None]
        length = jnp.where(ends, place + 1, hypotheses.length[..., None, None])
        rank = length_normalized(total, length, self.length_power)
        exists = hypotheses.real[..., None, None] & (place < hypotheses.length[..., None, None])
        rank = jnp.where(exists, rank, -jnp.inf).reshape(rows, -1)
        best, chosen = jax.lax.top_k(rank, beams)
        worst = jnp.min(self._rank(hypotheses), axis=1, keepdims=True)
        parent, place, number = jnp.unravel_index(chosen, (beams, limit, count))
        at = jnp.arange(rows)[:, None], parent, place, number
        return _Branches(
            parent=parent,
            place=place,
            number=number,
            token=alternatives.tokens[at],
            log_prob=alternatives.log_probs[at],
            real=(best > worst) & (best > -jnp.inf),
        )


class _Branches(NamedTuple):
    """K branches of each utterance: the beginning of a hypothesis, and another token.

    Attributes:
        parent: int32[B, K], the hypothesis that is branched from.
        place: int32[B, K], of its token that is replaced.
        number: int32[B, K], of the alternative at this place.
        token: int32[B, K]; `log_prob`: float32[B, K], that alternative.
        real: bool[B, K]; where it is False there is no such branch.
    """

    parent: jax.Array
    place: jax.Array
    number: jax.Array
    token: jax.Array
    log_prob: jax.Array
    real: jax.Array


@struct.dataclass
class _Hypotheses:
    """K hypotheses of each utterance.

    Attributes:
        tokens: int32[B, K, L]; `log_probs`: float32[B, K, L] of each; `call`: int32[B, K, L], that
            emitted each; `length`: int32[B, K].
        real: bool[B, K]; the others are places that are not taken.
        alternatives: that no branch has tried yet.
    """

    tokens: jax.Array
    log_probs: jax.Array
    call: jax.Array
    length: jax.Array
    real: jax.Array
    alternatives: Alternatives

    @classmethod
    def of(cls, end: Verification, real: jax.Array) -> _Hypotheses:
        """One hypothesis per row of a finished loop."""
        assert end.alternatives is not None
        text = end.text
        return cls(text.tokens, text.log_probs, text.call, text.length, real, end.alternatives)

    @property
    def score(self) -> jax.Array:
        """float32[B, K] log-probabilities."""
        return jnp.where(self.real, jnp.sum(self.log_probs, axis=2), -jnp.inf)

    def gather(self, places: jax.Array) -> _Hypotheses:
        """Those at int32[B, N] `places`."""
        row = jnp.arange(len(places))[:, None]
        gathered: _Hypotheses = jax.tree.map(lambda x: x[row, places], self)
        return gathered

    def branch(self, branches: _Branches) -> tuple[_Hypotheses, _Hypotheses]:
        """Parents whose `branches` count as tried, and the branches as hypotheses of their own."""
        row = jnp.arange(len(branches.parent))[:, None]
        tried = jnp.where(branches.real, branches.parent, self.length.shape[1])
        left = self.alternatives.log_probs.at[row, tried, branches.place, branches.number].set(
            -jnp.inf, mode="drop"
        )
        parents = dataclasses.replace(
            self, alternatives=dataclasses.replace(self.alternatives, log_probs=left)
        )
        parent = self.gather(branches.parent)
        slot = jnp.arange(self.tokens.shape[2])
        before, here = slot < branches.place[..., None], slot == branches.place[..., None]

        def replace(x: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(before, x, jnp.where(here, new[..., None], 0))

        call = jnp.take_along_axis(parent.call, branches.place[..., None], axis=2)[..., 0]
        return parents, _Hypotheses(
            tokens=replace(parent.tokens, branches.token),
            log_probs=replace(parent.log_probs, branches.log_prob),
            call=replace(parent.call, call),
            length=branches.place + 1,
            real=branches.real,
            # Branches at earlier tokens belong to the parent.
            alternatives=dataclasses.replace(
                parent.alternatives,
                log_probs=jnp.full_like(parent.alternatives.log_probs, -jnp.inf),
            ),
        )


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        hypotheses: the best K so far.
        branches: of the next round.
        cache: of what the hypotheses were fed, one row each.
        calls: int32[B]; `steps`: int32; `round`: int32.
    """

    hypotheses: _Hypotheses
    branches: _Branches
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
    round: jax.Array
