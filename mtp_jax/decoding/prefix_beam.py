"""Prefix beam search over the heads: an n-best list in several times fewer decoder calls."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, Model, NBest
from mtp_jax.nn.cache import KVCache

_NEVER = -1e30  # log-probability of what is not there; finite, as sums and differences of it are


@struct.dataclass
class PrefixBeam:
    """K hypotheses an utterance; a call extends all of them by up to M tokens and checks the last.

    *Extending* goes token by token: token m behind each prefix is scored by head m there, and of
    all continuations of all K prefixes the best K stay. *Checking*: the next call is fed these
    tokens, and head 1 scores each. Now the search is made again, by head 1 behind every prefix that
    was fed: of its beam of the next length, how large a share of the probability is in prefixes
    that were fed? Where it is below tau, all hypotheses are cut back to the length before; from
    there they are extended anew, by the hidden states that are at hand. So the K prefixes are
    always equally long, save those that ended; no two routes lead to the same one, and nothing is
    to be merged. The first token of a block is head 1's own, so that every call makes headway.

    Scores of all hypotheses returned are head 1's. With K = 1 it is verification decoding, whatever
    tau in (0, 1], and its output greedy's; with M = 1 it is the ordinary beam search.
    (arXiv 2409.08148 has a prefix-based beam search and leaves open how prefixes compete;
    docs/mwer.md compares readings.)

    Attributes:
        beams: K.
        tau: least share of head 1's beam that a block must hold to be kept.
        length_power: hypotheses are compared by log-probability over length to this power; 0
            compares probabilities, 1 means a token.
        heads: how many to use; 0 uses all M, 1 makes it the ordinary search.
    """

    beams: int = struct.field(pytree_node=False, default=4)
    tau: float | jax.Array = 0.8
    length_power: float | jax.Array = 0.0
    heads: int = struct.field(pytree_node=False, default=0)

    def decode(self, model: Model, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""
        all_heads, later_tokens = model.heads, model.later_tokens
        if self.heads:
            heads = min(self.heads, all_heads)
            model = model._replace(
                heads=heads, later_tokens=lambda hidden: later_tokens(hidden)[..., : heads - 1, :]
            )

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(state.open)

        def step(state: _State) -> _State:
            going = jnp.any(state.open, axis=1)
            hidden, state = self._feed(model, state)
            state = dataclasses.replace(state, calls=state.calls + going, steps=state.steps + 1)
            return self._extend(state, _all_log_probs(model, hidden), model.eos)

        hidden, cache = model.prefill(0)
        rows, shape = active.shape[0], (active.shape[0], self.beams)
        nothing = jnp.zeros((*shape, max_tokens))
        start = _State(
            beam=_Beam(
                tokens=nothing.astype(jnp.int32),
                log_probs=nothing,
                call=nothing.astype(jnp.int32),
                length=jnp.zeros(shape, jnp.int32),
                ended=jnp.zeros(shape, bool),
                real=active[:, None] & (jnp.arange(self.beams) == 0),
            ),
            base=jnp.zeros(rows, jnp.int32),
            cache=cache.branched(self.beams, max_tokens),
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
        )
        first = _all_log_probs(model, hidden)
        first = jnp.broadcast_to(first[:, None], (rows, self.beams, *first.shape[1:]))
        start = self._extend(start, first, model.eos)
        end = jax.lax.while_loop(unfinished, step, start)
        order = jnp.argsort(-end.beam.rank(self.length_power), axis=1, stable=True)
        best = end.beam.taken(order)
        none = jnp.zeros((rows, all_heads - 1), jnp.int32)
        return Decoded(
            tokens=best.tokens[:, 0],
            length=best.length[:, 0],
            calls=end.calls,
            proposed=none,
            accepted=none,
            loop_steps=end.steps,
            call=best.call[:, 0],
            nbest=NBest(
                tokens=best.tokens,
                length=best.length,
                log_probs=best.log_probs,
                real=best.real,
            ),
        )

    def _feed(self, model: Model, state: _State) -> tuple[jax.Array, _State]:
        """Feeds each hypothesis its new tokens, scores them by head 1 and cuts what it would not.

        Returns:
            Hidden states [B, K, D] at each one's last token, and the state.
        """
        beam, going, width = state.beam, jnp.any(state.open, axis=1), model.heads
        shape, limit = beam.length.shape, beam.tokens.shape[2]
        slots = state.fed[..., None] + jnp.arange(width)
        count = jnp.where(state.open, beam.length - beam.ended - state.fed, 0)
        block = jnp.take_along_axis(beam.tokens, jnp.minimum(slots, limit - 1), axis=2)
        hidden, cache = model.extend(block.reshape(-1, width), count.reshape(-1), state.cache)
        hidden = hidden.reshape(*shape, width, -1)
        if width == 1:
            return hidden[:, :, 0], dataclasses.replace(state, cache=cache)
        said = jax.nn.log_softmax(model.next_token(hidden))  # [B, K, M, V]
        scored = (jnp.arange(width) < count[..., None]) & (slots + 1 < beam.length[..., None])
        after = jnp.take_along_axis(beam.tokens, jnp.minimum(slots + 1, limit - 1), axis=2)
        log_probs = jnp.take_along_axis(said, after[..., None], axis=-1)[..., 0]
        log_probs = _put(beam.log_probs, slots + 1, log_probs, scored)
        beam = dataclasses.replace(beam, log_probs=log_probs)
        kept = self._kept(beam, state.base, said)
        # Rows that are done keep all they have.
        beam = beam.cut(jnp.where(going, state.base + kept, limit))
        held = jnp.minimum(cache.length.reshape(shape), beam.length)
        cache = dataclasses.replace(cache, length=held.reshape(-1))
        last = jnp.broadcast_to((kept - 1)[:, None, None, None], (*shape, 1, 1))
        state = dataclasses.replace(state, beam=beam, cache=cache)
        return jnp.take_along_axis(hidden, last, axis=2)[:, :, 0], state

    def _kept(self, beam: _Beam, base: jax.Array, said: jax.Array) -> jax.Array:
        """int32[B]: how many tokens of each block head 1 agrees to.

        Args:
            beam: the hypotheses, scored by head 1.
            base: int32[B], length of those that go on before the block.
            said: float32[B, K, M, V], what head 1 says behind each token of each one's block.
        """
        depth = jnp.max(jnp.where(beam.real, beam.length, 0), axis=1) - base
        best, token = jax.lax.top_k(said, min(self.beams, said.shape[-1]))
        kept, good = jnp.ones_like(base), jnp.ones_like(base, bool)
        for level in range(1, said.shape[2]):
            # Prefixes up to this level, each of them once, and all their continuations.
            prefixes, longer = beam.cut(base + level), beam.cut(base + level + 1)
            choice = self._best(prefixes, best[:, :, level - 1], token[:, :, level - 1])
            # A continuation was fed if a hypothesis has its prefix, and its token.
            after = jnp.minimum(base + level, beam.tokens.shape[2] - 1)
            theirs = jnp.take_along_axis(longer.tokens, after[:, None, None], axis=2)[..., 0]
            same = choice.parent[:, :, None] == beam.same(base + level)[:, None, :]
            over = jnp.take_along_axis(prefixes.ended, choice.parent, axis=1)
            same &= over[:, :, None] | (choice.token[:, :, None] == theirs[:, None, :])
            fed = jnp.any(same & longer.real[:, None, :], axis=2)
            shares = jax.nn.softmax(choice.score, axis=1)
            good &= (jnp.sum(jnp.where(fed, shares, 0), axis=1) >= self.tau) & (level < depth)
            kept += good
        return kept

    def _extend(self, state: _State, heads: jax.Array, eos: int) -> _State:
        """Extends the hypotheses token by token, by heads [B, K, M, V] at the end of each."""
        rows, beams, count, vocabulary = heads.shape
        row = jnp.arange(rows)[:, None]
        best, token = jax.lax.top_k(heads, min(beams, vocabulary))
        beam, root = state.beam, jnp.broadcast_to(jnp.arange(beams), (rows, beams))
        base = jnp.max(jnp.where(beam.live, beam.length, 0), axis=1)
        for m in range(count):
            choice = self._best(beam, best[row, root, m], token[row, root, m])
            longer = beam.taken(choice.parent)
            longer = longer.appended(choice.token, choice.log_prob, state.steps, longer.live, eos)
            beam = dataclasses.replace(longer, real=longer.real & (choice.score > _NEVER / 2))
            root = root[row, choice.parent]
        rows_of = (row * beams + root).reshape(-1)
        return dataclasses.replace(state, beam=beam, base=base, cache=state.cache.moved(rows_of))

    def _best(self, beam: _Beam, log_probs: jax.Array, tokens: jax.Array) -> _Choice:
        """The best K of all continuations of K hypotheses; one that ended stands for itself.

        Args:
            beam: the hypotheses.
            log_probs: float32[B, K, C] of the best C continuations of each, the best first; K of
                them suffice: they are all that could fill the beam.
            tokens: int32[B, K, C].
        """
        rows, beams, count = log_probs.shape
        itself = jnp.where(jnp.arange(count) == 0, 0.0, _NEVER)
        total = beam.score[..., None] + jnp.where(beam.ended[..., None], itself, log_probs)
        total = jnp.where(beam.real[..., None], total, _NEVER)
        length = jnp.broadcast_to((beam.length + ~beam.ended)[..., None], total.shape)
        rank = _normalized(total, length, self.length_power).reshape(rows, -1)
        chosen = jax.lax.top_k(rank, beams)[1]

        def pick(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x.reshape(rows, -1), chosen, axis=1)

        return _Choice(chosen // count, pick(tokens), pick(log_probs), pick(total))


class _Choice(NamedTuple):
    """K continuations an utterance.

    Attributes:
        parent: int32[B, K], which hypothesis it goes on from.
        token: int32[B, K]; `log_prob`: float32[B, K] of it; meaningless where the parent ended.
        score: float32[B, K] log-probability of the whole.
    """

    parent: jax.Array
    token: jax.Array
    log_prob: jax.Array
    score: jax.Array


@struct.dataclass
class _Beam:
    """K hypotheses an utterance.

    Attributes:
        tokens: int32[B, K, L]; `log_probs`: float32[B, K, L] of each; `call`: int32[B, K, L] that
            proposed it; `length`: int32[B, K].
        ended: bool[B, K], by EOS or by the limit.
        real: bool[B, K]; the others are places not taken.
    """

    tokens: jax.Array
    log_probs: jax.Array
    call: jax.Array
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

    def same(self, end: jax.Array) -> jax.Array:
        """int32[B, K]: the first place with the same text as each, up to int32[B] `end` tokens."""
        there = jnp.arange(self.tokens.shape[2]) < end[:, None, None]
        text = jnp.where(there, self.tokens, -1)
        same = jnp.all(text[:, :, None] == text[:, None], axis=-1) & self.real[:, None]
        return jnp.argmax(same, axis=2)

    def cut(self, end: jax.Array) -> _Beam:
        """Of at most int32[B] `end` tokens each; of those that are alike then the first stays."""
        there = jnp.arange(self.tokens.shape[2]) < end[:, None, None]
        length = jnp.minimum(self.length, end[:, None])
        return _Beam(
            tokens=jnp.where(there, self.tokens, 0),
            log_probs=jnp.where(there, self.log_probs, 0),
            call=jnp.where(there, self.call, 0),
            length=length,
            ended=self.ended & (self.length == length),
            real=self.real & (self.same(end) == jnp.arange(length.shape[1])),
        )

    def appended(
        self, token: jax.Array, log_prob: jax.Array, call: jax.Array, where: jax.Array, eos: int
    ) -> _Beam:
        """With a token more, of the int32 `call`, in the places bool[B, K] `where`."""
        slots, where_1 = self.length[..., None], where[..., None]
        length = self.length + where
        over = (token == eos) | (length >= self.tokens.shape[2])
        return dataclasses.replace(
            self,
            tokens=_put(self.tokens, slots, token[..., None], where_1),
            log_probs=_put(self.log_probs, slots, log_prob[..., None], where_1),
            call=_put(self.call, slots, jnp.broadcast_to(call, slots.shape), where_1),
            length=length,
            ended=self.ended | (where & over),
        )


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        beam: the hypotheses.
        base: int32[B], length of those that went on before the last block.
        cache: of what they were fed, a row each.
        calls: int32[B]; steps: int32.
    """

    beam: _Beam
    base: jax.Array
    cache: KVCache
    calls: jax.Array
    steps: jax.Array

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
