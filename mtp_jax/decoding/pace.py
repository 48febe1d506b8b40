"""Whether a wide call pays: the tokens that wide calls give, against what they cost.

A call that verifies drafts takes longer than one that is fed one token: on a CPU two to three times
as long, on an accelerator hardly longer until its batch is large. Where drafts are right too seldom
for that, decoding goes on one token wide, and now and then tries a wide call again.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

RATE = 0.3  # of the running mean: three wide calls count for two thirds of it
UNKNOWN = 1.5  # gain of a batch with none before it, in costs
FIRST_REST = 8  # narrow calls before the first new try
LONGEST_REST = 64


@struct.dataclass
class Pace:
    """What is known of a batch so far.

    Attributes:
        cost: float32, what a wide call costs, in narrow ones; infinite where none is to be made.
        gain: float32, tokens that a wide call gives each row, a running mean.
        rest: int32, narrow calls until a wide one is tried again.
        next_rest: int32, how many there will be if that does not pay.
    """

    cost: jax.Array
    gain: jax.Array
    rest: jax.Array
    next_rest: jax.Array

    @classmethod
    def start(cls, cost: jax.Array | float, gain: jax.Array | float) -> Pace:
        """Of a batch of which nothing is known but the `gain` of those before it.

        Where that is 0, nothing is known at all, and two calls that give a token each end the try.
        """
        first = jnp.int32(FIRST_REST)
        cost, gain = jnp.asarray(cost, jnp.float32), jnp.asarray(gain, jnp.float32)
        gain = jnp.where(gain > 0, gain, UNKNOWN * cost)
        rests = (gain < cost) | jnp.isinf(cost)
        return cls(cost, gain, jnp.where(rests, first, 0), jnp.where(rests, 2 * first, first))

    @property
    def wide(self) -> jax.Array:
        """bool: the next call is wide."""
        return self.rest == 0

    def after_wide(self, emitted: jax.Array, running: jax.Array) -> Pace:
        """Behind a call that gave int32[B] tokens to the rows where bool[B] `running` is True."""
        count = jnp.maximum(jnp.sum(running), 1)
        mean = jnp.sum(jnp.where(running, emitted, 0)) / count
        gain = self.gain + RATE * (mean - self.gain)
        pays = gain >= self.cost
        return Pace(
            cost=self.cost,
            gain=gain,
            rest=jnp.where(pays, 0, self.next_rest),
            next_rest=jnp.where(pays, FIRST_REST, jnp.minimum(2 * self.next_rest, LONGEST_REST)),
        )

    def after_narrow(self) -> Pace:
        """Behind a narrow call. The try at the end of a rest is judged by itself."""
        rest = jnp.where(jnp.isinf(self.cost), self.rest, self.rest - 1)
        gain = jnp.where(rest == 0, self.cost, self.gain)
        return dataclasses.replace(self, rest=rest, gain=gain)
