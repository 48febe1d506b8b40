"""Prefix beam search over the heads: an n-best list in several times fewer decoder calls."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, Model, NBest
from mtp_jax.nn.cache import KVCache

_NEVER = -1e30  # log-probability of what is not there; finite, as sums and differences of it are


@struct.dataclass
class PrefixBeam:
    """K hypotheses an utterance, of which one call extends every one by up to M tokens.

    Within a call the search goes token by token: token m behind each prefix is scored by head m
    there, and of all continuations of all K prefixes the best K stay. It goes on to the next token
    while the heads are sure: until the probability of a head's best token, averaged over the
    prefixes by their share of the beam, is below tau. So all hypotheses that go on are equally
    long, and as the K prefixes of a call differ, no two routes lead to the same one: nothing is to
    be merged. The next call, which has to be fed the new tokens in any case, puts head 1's score
    of each in the place of the later head's: scores of all hypotheses returned are head 1's.

    With M = 1, or tau above 1, this is the ordinary beam search; with K = 1 also, greedy decoding.
    (arXiv 2409.08148 has a prefix-based beam search and leaves open how prefixes compete;
    docs/mwer.md compares readings.)

    Attributes:
        beams: K.
        tau: least probability at which a call's block goes on.
        length_power: hypotheses are compared by log-probability over length to this power; 0
            compares probabilities, 1 means a token.
    """

    beams: int = struct.field(pytree_node=False, default=4)
    tau: float | jax.Array = 0.9
    kept: float | jax.Array = 0.0
    chain: bool = struct.field(pytree_node=False, default=False)
    length_power: float | jax.Array = 0.0

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(state.open)

        def step(state: _State) -> _State:
            going = jnp.any(state.open, axis=1)
            hidden, state = self._feed(model, state)
            state = self._extend(state, _all_log_probs(model, hidden), model.eos)
            return dataclasses.replace(state, calls=state.calls + going, steps=state.steps + 1)

        hidden, cache = model.prefill(0)
        rows, shape = active.shape[0], (active.shape[0], self.beams)
        nothing = jnp.zeros((*shape, max_tokens))
        start = _State(
            beam=_Beam(
                tokens=nothing.astype(jnp.int32),
                log_probs=nothing,
                length=jnp.zeros(shape, jnp.int32),
                ended=jnp.zeros(shape, bool),
                real=active[:, None] & (jnp.arange(self.beams) == 0),
            ),
            cache=cache.branched(self.beams, max_tokens),
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
            base=jnp.zeros(rows, jnp.int32),
        )
        heads = _all_log_probs(model, hidden)
        heads = jnp.broadcast_to(heads[:, None], (rows, self.beams, *heads.shape[1:]))
        start = self._extend(start, heads, model.eos)
        end = jax.lax.while_loop(unfinished, step, start)
        order = jnp.argsort(-end.beam.rank(self.length_power), axis=1, stable=True)
        best = end.beam.taken(order)
        none = jnp.zeros((rows, model.heads - 1), jnp.int32)
        return Decoded(
            tokens=best.tokens[:, 0],
            length=best.length[:, 0],
            calls=end.calls,
            proposed=none,
            accepted=none,
            loop_steps=end.steps,
            nbest=NBest(
                tokens=best.tokens,
                length=best.length,
                log_probs=best.log_probs,
                real=best.real,
            ),
        )

    def _feed(self, model: Model, state: _State) -> tuple[jax.Array, _State]:
        """Feeds each hypothesis its new tokens, and scores them by head 1.

        Returns:
            Hidden states [B, K, D] at each one's last token, and the state.
        """
        beam, shape, width = state.beam, state.beam.length.shape, model.heads
        slots = state.fed[..., None] + jnp.arange(width)
        count = jnp.where(state.open, beam.length - beam.ended - state.fed, 0)
        block = jnp.take_along_axis(
            beam.tokens, jnp.minimum(slots, beam.tokens.shape[2] - 1), axis=2
        )
        hidden, cache = model.extend(block.reshape(-1, width), count.reshape(-1), state.cache)
        hidden = hidden.reshape(*shape, width, -1)
        if width == 1:
            state = dataclasses.replace(state, cache=cache)
            return hidden[:, :, 0], state
        scored = (jnp.arange(width) < count[..., None]) & (slots + 1 < beam.length[..., None])
        after = jnp.minimum(slots + 1, beam.tokens.shape[2] - 1)
        token = jnp.take_along_axis(beam.tokens, after, axis=2)
        exact = jax.nn.log_softmax(model.next_token(hidden))  # [B, K, M, V]
        log_probs = jnp.take_along_axis(exact, token[..., None], axis=-1)[..., 0]
        beam = dataclasses.replace(
            beam, log_probs=_put(beam.log_probs, slots + 1, log_probs, scored)
        )
        base = state.base[:, None]  # [B, 1]
        rows, beams = shape
        V = exact.shape[-1]
        C = min(beams, V)
        L = beam.tokens.shape[2]
        depth = jnp.max(jnp.where(beam.real, beam.length, 0), axis=1) - state.base  # [B]
        place = jnp.arange(L)

        def upto(i):  # score of prefixes of base + i tokens, and who is the first with each
            there = place < (base + i)[..., None]
            score = jnp.sum(jnp.where(there, beam.log_probs, 0), axis=2)
            t = jnp.where(there, beam.tokens, -1)
            same = jnp.all(t[:, :, None] == t[:, None], axis=-1) & beam.real[:, None]
            first = jnp.argmax(same, axis=2)  # lowest index
            return score, first

        level = jnp.ones(rows, jnp.int32)
        going = jnp.ones(rows, bool)
        for i in range(1, width):
            score, first = upto(i)
            rep = (first == jnp.arange(beams)) & beam.real
            over = beam.ended & (beam.length - base <= i)
            here, what = jax.lax.top_k(exact[:, :, i - 1], C)
            total = jnp.where(over[..., None], jnp.where(jnp.arange(C) == 0, score[..., None], _NEVER), score[..., None] + here)
            total = jnp.where(rep[..., None], total, _NEVER)
            length = jnp.where(over, beam.length, base + i + 1)[..., None]
            rank = _normalized(total, length, self.length_power)
            top, chosen = jax.lax.top_k(rank.reshape(rows, -1), beams)
            mass = jnp.take_along_axis(total.reshape(rows, -1), chosen, axis=1)
            parent, c = chosen // C, chosen % C
            row = jnp.arange(rows)[:, None]
            ctoken = what[row, parent, c]  # [B, K]
            cover = over[row, parent]
            _, first1 = upto(i + 1)
            rep1 = (first1 == jnp.arange(beams)) & beam.real
            mine = jnp.take_along_axis(beam.tokens, jnp.minimum(base + i, L - 1)[..., None] + jnp.zeros((rows, beams, 1), jnp.int32), axis=2)[..., 0]
            # candidate n is in the block if some hypothesis has its parent's prefix and its token
            match = (first[:, None, :] == parent[:, :, None]) & rep1[:, None, :]
            match &= cover[:, :, None] | (mine[:, None, :] == ctoken[:, :, None])
            held = jnp.any(match, axis=2)
            shares = jax.nn.softmax(mass, axis=1)
            kept = jnp.sum(jnp.where(held, shares, 0), axis=1)
            going &= (kept >= self.kept) & (i + 1 <= depth)
            level += going
        end = state.base + level  # [B]
        end = jnp.where(jnp.any(state.open, axis=1), end, L)
        cut = beam.length > end[:, None]
        length = jnp.minimum(beam.length, end[:, None])
        there = place < length[..., None]
        t = jnp.where(there, beam.tokens, 0)
        same = jnp.all(t[:, :, None] == t[:, None], axis=-1) & (length[:, :, None] == length[:, None]) & beam.real[:, None]
        first = jnp.argmax(same, axis=2) == jnp.arange(beams)
        beam = dataclasses.replace(
            beam,
            tokens=t,
            log_probs=jnp.where(there, beam.log_probs, 0),
            length=length,
            ended=beam.ended & ~cut,
            real=beam.real & first,
        )
        cached = jnp.minimum(cache.length.reshape(shape), length)
        cache = dataclasses.replace(cache, length=cached.reshape(-1))
        state = dataclasses.replace(state, beam=beam, cache=cache)
        at = jnp.broadcast_to((level - 1)[:, None, None, None], (rows, beams, 1, 1))
        return jnp.take_along_axis(hidden, at, axis=2)[:, :, 0], state

    def _extend(self, state: _State, heads: jax.Array, eos: int) -> _State:
        """Extends the hypotheses token by token, by heads [B, K, M, V] at the end of each."""
        rows, beams, count, vocabulary = heads.shape
        row = jnp.arange(rows)[:, None]
        # K continuations of one prefix suffice: they are all that could fill the beam.
        best, token = jax.lax.top_k(heads, min(beams, vocabulary))
        start_beam = state.beam
        beam, root = state.beam, jnp.broadcast_to(jnp.arange(beams), (rows, beams))
        going = jnp.any(beam.live, axis=1)
        for m in range(count):
            here, what = best[row, root, m], token[row, root, m]  # [B, K, C]
            if m > 0:
                going &= self._confidence(beam, here[..., 0]) >= self.tau
            total = beam.score[..., None] + here
            if self.chain and m > 0:
                total = jnp.where(jnp.arange(here.shape[2]) == 0, total, _NEVER)
            length = beam.length[..., None] + jnp.ones_like(what)
            # One that ended stands for itself, as the first of its continuations.
            itself = jnp.where(jnp.arange(here.shape[2]) == 0, beam.score[..., None], _NEVER)
            total = jnp.where(beam.ended[..., None], itself, total)
            length = length - beam.ended[..., None]
            total = jnp.where(beam.real[..., None], total, _NEVER)
            rank = _normalized(total, length, self.length_power)
            top, chosen = jax.lax.top_k(rank.reshape(rows, -1), beams)
            parent, c = chosen // here.shape[2], chosen % here.shape[2]
            longer = beam.taken(parent)
            adds = longer.live
            longer = longer.appended(what[row, parent, c], here[row, parent, c], adds, eos)
            longer = dataclasses.replace(longer, real=longer.real & (top > _NEVER / 2))
            beam = _chosen(going, longer, beam)
            root = jnp.where(going[:, None], root[row, parent], root)
            going &= jnp.any(beam.live, axis=1)
        rows_of = (row * beams + root).reshape(-1)
        base = jnp.max(jnp.where(start_beam.live, start_beam.length, 0), axis=1)
        return dataclasses.replace(state, beam=beam, cache=state.cache.moved(rows_of), base=base)

    def _confidence(self, beam: _Beam, best: jax.Array) -> jax.Array:
        """float32[B]: mean probability of heads' best tokens, given their logarithms [B, K]."""
        shares = jax.nn.softmax(jnp.where(beam.live, beam.score, _NEVER), axis=1)
        return jnp.sum(shares * jnp.exp(best), axis=1)


@struct.dataclass
class _Beam:
    """K hypotheses an utterance.

    Attributes:
        tokens: int32[B, K, L]; `log_probs`: float32[B, K, L] of each; `length`: int32[B, K].
        ended: bool[B, K], by EOS or by the limit.
        real: bool[B, K]; the others are places not taken.
    """

    tokens: jax.Array
    log_probs: jax.Array
    length: jax.Array
    ended: jax.Array
    real: jax.Array

    @property
    def live(self) -> jax.Array:
        """bool[B, K]: goes on."""
        return self.real & ~self.ended

    @property
    def score(self) -> jax.Array:
        """float32[B, K] log-probabilities."""
        return jnp.where(self.real, jnp.sum(self.log_probs, axis=2), _NEVER)

    def rank(self, length_power: float | jax.Array) -> jax.Array:
        """float32[B, K], by which hypotheses are compared."""
        return _normalized(self.score, self.length, length_power)

    def taken(self, parent: jax.Array) -> _Beam:
        """Place k as int32[B, K] ``parent[:, k]`` was."""
        row = jnp.arange(parent.shape[0])[:, None]
        taken: _Beam = jax.tree.map(lambda x: x[row, parent], self)
        return taken

    def appended(self, token: jax.Array, log_prob: jax.Array, where: jax.Array, eos: int) -> _Beam:
        """With a token more, in the places bool[B, K] `where`."""
        slots, where_1 = self.length[..., None], where[..., None]
        length = self.length + where
        over = (token == eos) | (length >= self.tokens.shape[2])
        return dataclasses.replace(
            self,
            tokens=_put(self.tokens, slots, token[..., None], where_1),
            log_probs=_put(self.log_probs, slots, log_prob[..., None], where_1),
            length=length,
            ended=self.ended | (where & over),
        )


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        beam: the hypotheses.
        cache: of what they were fed, a row each.
        calls: int32[B]; steps: int32.
    """

    beam: _Beam
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
    base: jax.Array

    @property
    def fed(self) -> jax.Array:
        """int32[B, K] tokens of each hypothesis that the cache holds."""
        return self.cache.length.reshape(self.beam.length.shape)

    @property
    def open(self) -> jax.Array:
        """bool[B, K]: goes on, or ended with tokens that head 1 has not scored yet.

        Head 1 scores token i + 1 when token i is fed, and the first one of every call itself.
        """
        unscored = self.fed < self.beam.length - 1
        return self.beam.real & (~self.beam.ended | unscored)


def _all_log_probs(model: Model, hidden: jax.Array) -> jax.Array:
    """float32[..., M, V] of all heads at hidden states [..., D]."""
    first = model.next_token(hidden)[..., None, :]
    logits = jnp.concatenate([first, model.later_tokens(hidden)], axis=-2)
    return jax.nn.log_softmax(logits)


def _normalized(score: jax.Array, length: jax.Array, power: float | jax.Array) -> jax.Array:
    there = score > _NEVER / 2
    return jnp.where(there, score / jnp.maximum(length, 1) ** power, _NEVER)


def _put(store: jax.Array, slots: jax.Array, x: jax.Array, where: jax.Array) -> jax.Array:
    """`store` [B, K, L] with `x` [B, K, S] at `slots` [B, K, S], in the places `where`."""
    row, place = jnp.arange(store.shape[0])[:, None, None], jnp.arange(store.shape[1])[:, None]
    slots = jnp.where(where, slots, store.shape[2])
    return store.at[row, place, slots].set(x, mode="drop")


def _chosen(rows: jax.Array, new: _Beam, old: _Beam) -> _Beam:
    """`new` in the rows bool[B], `old` in the others."""

    def pick(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    picked: _Beam = jax.tree.map(pick, new, old)
    return picked
