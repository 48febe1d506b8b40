"""Whether a wide call pays: the tokens that wide calls give, against what they cost.

A call that verifies drafts takes longer than one that is fed one token: on a CPU two to three times
as long, on an accelerator hardly longer until its batch is large. Where drafts are right too seldom
for that, decoding goes on one token wide, and now and then tries a wide call again.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

RATE = 0.05  # least weight of a new call in the mean: a run of wrong drafts is soon over
UNKNOWN = 1.5  # gain of wide calls before the first, in costs
WEIGHT = 2  # calls that this counts for
TRIED = 8  # calls that the break-even counts for, which a try starts from
FIRST_REST = 8  # narrow calls before the first new try
LONGEST_REST = 64


@struct.dataclass
class Pace:
    """What is known of the calls of one model so far; it goes from batch to batch.

    Attributes:
        cost: float32, what a wide call costs, in narrow ones; at 1 or below every call is wide, and
            none where it is infinite.
        gain: float32, tokens that a wide call gives each row, a running mean.
        seen: int32, the wide calls that it is the mean of; 0 if none is known.
        rest: int32, narrow calls until a wide one is tried again.
        next_rest: int32, how many there will be if that does not pay.
    """

    cost: jax.Array
    gain: jax.Array
    seen: jax.Array
    rest: jax.Array
    next_rest: jax.Array

    @classmethod
    def of(cls, cost: float = 1.0) -> Pace:
        """Before the first call, on the host."""
        zero = np.int32(0)
        return cls(np.float32(cost), np.float32(0), zero, zero, np.int32(FIRST_REST))  # type: ignore[arg-type]

    def with_cost(self, cost: float) -> Pace:
        """The same, where calls turned out to cost something else."""
        return dataclasses.replace(self, cost=np.float32(cost))  # type: ignore[arg-type]

    @property
    def wide(self) -> jax.Array:
        """bool: the next call is wide."""
        return (self.rest == 0) & jnp.isfinite(self.cost)

    def after_wide(self, emitted: jax.Array, running: jax.Array) -> Pace:
        """Behind a call that gave int32[B] tokens to the rows where bool[B] `running` is True."""
        count = jnp.maximum(jnp.sum(running), 1)
        mean = jnp.sum(jnp.where(running, emitted, 0)) / count
        known = self.seen > 0
        before = jnp.where(known, self.gain, UNKNOWN * self.cost)
        seen = jnp.where(known, self.seen, WEIGHT) + 1
        gain = before + jnp.maximum(1 / seen, RATE) * (mean - before)
        pays = gain >= self.cost
        return Pace(
            cost=self.cost,
            gain=gain.astype(jnp.float32),
            seen=seen,
            rest=jnp.where(pays, 0, self.next_rest),
            next_rest=jnp.where(pays, FIRST_REST, jnp.minimum(2 * self.next_rest, LONGEST_REST)),
        )

    def after_narrow(self) -> Pace:
        """Behind a narrow call. The try at the end of a rest is judged by itself."""
        tries = (self.rest == 1) & jnp.isfinite(self.cost)
        return dataclasses.replace(
            self,
            rest=jnp.maximum(self.rest - 1, 0),
            gain=jnp.where(tries, self.cost, self.gain),
            seen=jnp.where(tries, TRIED, self.seen),
        )
