"""What `Auto` is told of its calls: their cost, and what those of the batches before gave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

import jax

from mtp_jax.config import Config
from mtp_jax.data import Batch
from mtp_jax.decoding import Auto
from mtp_jax.decoding.pace import Pace
from mtp_jax.inference.call_cost import CallCosts, key_of, measure, usual
from mtp_jax.inference.programs import Inference

RUNS_BEFORE = 3  # of a program: short work is not held up, and the first run takes longer


class Pacing:
    """Costs and paces of the calls of one model.

    Args:
        config: of the model.
        mesh: where it runs.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh) -> None:
        self._config, self._mesh = config, mesh
        self._costs = CallCosts()
        self._paces: dict[str, Pace] = {}
        self._runs: dict[Hashable, int] = {}

    def run(
        self,
        decode: Callable[[Batch, Auto], Inference],
        batch: Batch,
        strategy: Auto,
        program: Hashable,
    ) -> Inference:
        """Decodes a batch, and measures what its calls cost if that is not known yet.

        Where several processes decode one batch all have to decide alike: there every call is wide.

        Args:
            decode: the compiled program.
            batch, strategy: what it is given.
            program: names it.
        """
        if jax.process_count() > 1:
            return decode(batch, strategy)
        key = key_of(self._config, batch, strategy, self._mesh)
        cost, otherwise = self._costs.get(key), usual(self._mesh)
        self._runs[program] = self._runs.get(program, 0) + 1
        if cost is None and self._runs[program] > RUNS_BEFORE and key in self._paces:
            cost, done = measure(decode, batch, strategy)
            self._costs.put(key, cost or otherwise, keep=cost is not None)
        else:
            pace = self._paces.get(key, strategy.pace).with_cost(cost or otherwise)
            done = decode(batch, dataclasses.replace(strategy, pace=pace))
            if done.decoded.pace is not None:  # the model has something to draft by
                self._paces[key] = done.decoded.pace
        return done
