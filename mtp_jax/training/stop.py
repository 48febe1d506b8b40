"""Whether training is to stop, which all processes of a run must find at the same place."""

from __future__ import annotations

import os
import signal

import jax
from jax.experimental import multihost_utils

from mtp_jax.interrupts import Interrupted, requested


class Stop:
    """Asked between steps and between batches of dev, equally often in every process.

    With one process it is the flag of `mtp_jax.interrupts`. Of several one may receive SIGTERM (a
    machine is to be taken away): JAX listens for it from the start, and chooses a question that no
    process has asked yet, which is answered with yes in all.
    """

    def __init__(self) -> None:
        self._asked, self._forwarded = 0, False

    def raise_if_requested(self) -> None:
        """Raises:
        Interrupted: training is to stop here.
        """
        number = requested()
        if jax.process_count() > 1:
            if number and not self._forwarded:  # Ctrl-C, of which JAX knows nothing
                self._forwarded = True
                os.kill(os.getpid(), signal.SIGTERM)
            self._asked += 1
            if not multihost_utils.reached_preemption_sync_point(self._asked):
                return
            number = number or signal.SIGTERM
        if number:
            raise Interrupted(number)
