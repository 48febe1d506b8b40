"""Beam search as everyone runs it: one token a call for each of K prefixes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.interface import Decoded, DecoderFunctions, NBest, best_of
from mtp_jax.decoding.text import length_normalized
from mtp_jax.models.kv_cache import KVCache


@struct.dataclass
class BeamSearch:
    """The K best of all continuations of K prefixes by a token stay, until all have ended.

    What prefix beam search is measured against. With K = 1 it is greedy decoding; with K large
    enough to hold every prefix, brute force.

    Attributes:
        beams: K.
        length_power: hypotheses are compared by log-probability over length to this power; 0
            compares probabilities, 1 means a token.
    """

    beams: int = struct.field(pytree_node=False, default=4)
    length_power: float | jax.Array = 0.0

    @property
    def name(self) -> str:
        """As in the registry."""
        return "beam"

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """As every `Strategy` does; the best hypothesis, and the list as ``nbest``."""

        def unfinished(state: _State) -> jax.Array:
            return jnp.any(state.beam.live)

        def step(state: _State) -> _State:
            live = state.beam.live
            last = jnp.maximum(state.beam.length - 1, 0)[..., None]
            token = jnp.take_along_axis(state.beam.tokens, last, axis=2)
            fed = live.reshape(-1).astype(jnp.int32)
            hidden, cache = model.extend(token.reshape(-1, 1), fed, state.cache)
            state = dataclasses.replace(
                state, cache=cache, calls=state.calls + jnp.any(live, axis=1), steps=state.steps + 1
            )
            predicted = jax.nn.log_softmax(model.next_token(hidden[:, 0]))
            return self._extended(state, predicted.reshape(*live.shape, -1), model.eos)

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
            cache=cache.fork(self.beams, max_tokens),
            calls=active.astype(jnp.int32),
            steps=jnp.int32(1),
        )
        first = jax.nn.log_softmax(model.next_token(hidden))
        first = jnp.broadcast_to(first[:, None], (rows, self.beams, first.shape[1]))
        start = self._extended(start, first, model.eos)
        end = jax.lax.while_loop(unfinished, step, start)
        order = jnp.argsort(-end.beam.rank(self.length_power), axis=1, stable=True)
        best = end.beam.gather(order)
        nbest = NBest(best.tokens, best.length, best.log_probs, best.real)
        return best_of(nbest, best.call, end.calls, end.steps, model.heads)

    def _extended(self, state: _State, predicted: jax.Array, eos: int) -> _State:
        """With the best K of all continuations, by head 1's log-probabilities [B, K, V]."""
        beam, vocabulary = state.beam, predicted.shape[2]
        # K of each are all that could fill the beam. One that ended stands for itself.
        predicted, token = jax.lax.top_k(predicted, min(self.beams, vocabulary))
        itself = jnp.where(jnp.arange(predicted.shape[2]) == 0, 0.0, -jnp.inf)
        total = beam.score[..., None] + jnp.where(beam.ended[..., None], itself, predicted)
        length = (beam.length + ~beam.ended)[..., None]
        rank = length_normalized(total, length, self.length_power).reshape(len(total), -1)
        best, chosen = jax.lax.top_k(rank, self.beams)

        def pick(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x.reshape(len(x), -1), chosen, axis=1)

        parent = chosen // predicted.shape[2]
        choice = _Choice(pick(token), pick(predicted), state.calls)
        longer = beam.gather(parent).appended(choice, eos)
        return dataclasses.replace(
            state,
            beam=dataclasses.replace(longer, real=longer.real & (best > -jnp.inf)),
            cache=state.cache.gather_rows(parent),
        )


class _Choice(NamedTuple):
    """A token more for each hypothesis.

    Attributes:
        token: int32[B, K]; `log_prob`: float32[B, K]; meaningless for those that ended.
        call: int32[B], how many calls there have been.
    """

    token: jax.Array
    log_prob: jax.Array
    call: jax.Array


@struct.dataclass
class _Beam:
    """K hypotheses an utterance.

    Attributes:
        tokens: int32[B, K, L]; `log_probs`: float32[B, K, L] of each; `call`: int32[B, K, L] that
            emitted it; `length`: int32[B, K].
        ended: bool[B, K], by EOS or by the limit.
        real: bool[B, K]; the alternatives are places not gathered.
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
        return jnp.where(self.real, jnp.sum(self.log_probs, axis=2), -jnp.inf)

    def rank(self, length_power: float | jax.Array) -> jax.Array:
        """float32[B, K], by which hypotheses are compared."""
        return length_normalized(self.score, self.length, length_power)

    def gather(self, parent: jax.Array) -> _Beam:
        """Place k as int32[B, K] ``parent[:, k]`` was."""
        row = jnp.arange(parent.shape[0])[:, None]
        gathered: _Beam = jax.tree.map(lambda x: x[row, parent], self)
        return gathered

    def appended(self, choice: _Choice, eos: int) -> _Beam:
        """With a token more in the places that go on."""
        row, place = jnp.arange(len(self.length))[:, None], jnp.arange(self.length.shape[1])
        limit = self.tokens.shape[2]
        slot = row, place, jnp.where(self.live, self.length, limit)
        length = self.length + self.live
        over = (choice.token == eos) | (length >= limit)
        call = jnp.broadcast_to(choice.call[:, None], length.shape)
        return dataclasses.replace(
            self,
            tokens=self.tokens.at[slot].set(choice.token, mode="drop"),
            log_probs=self.log_probs.at[slot].set(choice.log_prob, mode="drop"),
            call=self.call.at[slot].set(call, mode="drop"),
            length=length,
            ended=self.ended | (self.live & over),
        )


@struct.dataclass
class _State:
    """Loop state.

    Attributes:
        beam: the hypotheses.
        cache: of all but the last token of each, a row a hypothesis.
        calls: int32[B]; steps: int32.
    """

    beam: _Beam
    cache: KVCache
    calls: jax.Array
    steps: jax.Array
