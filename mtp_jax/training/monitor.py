"""The guard of the loss: means for the log, and an end to a run that has gone wrong."""

from __future__ import annotations

import dataclasses
import math
import time

import jax
import numpy as np

# Nats a token. A loss below it is that of a model that makes no mistakes, and is made of few
# batches' worth of rounding: its ratios say nothing.
LOSS_FLOOR = 0.1


class TrainingStopped(RuntimeError):
    """Training ended before its last step; the message says why, and how to go on."""


@dataclasses.dataclass
class LossMonitor:
    """Scalars of the steps since the last check: on the device until then, read together.

    Attributes:
        max_loss_ratio: head 1's mean loss between two checks may not exceed this multiple of its
            running mean, or of `LOSS_FLOOR` if that is greater (the whole loss may be near 0 or
            below it, with MWER). Where head 1 is not trained, the whole loss counts.
        pending: steps, and their scalars.
        mean_loss: running mean of that loss.
        since: when the first of the pending steps began (`time.perf_counter`).
    """

    max_loss_ratio: float
    pending: list[tuple[int, dict[str, jax.Array]]] = dataclasses.field(default_factory=list)
    mean_loss: float = math.inf
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def check(self) -> dict[str, float]:
        """Means over the pending steps, of which there must be one.

        Raises:
            TrainingStopped: a loss or gradient is not finite, or the loss rose too far.
        """
        steps = [step for step, _ in self.pending]
        scalars = jax.device_get([metrics for _, metrics in self.pending])
        self.pending.clear()
        for step, values in zip(steps, scalars, strict=True):
            loss = float(values["loss"])
            if not (math.isfinite(loss) and math.isfinite(values["gradient_norm"])):
                raise TrainingStopped(
                    f"the loss is {loss:g} and the gradient norm {values['gradient_norm']:g} at"
                    f" step {step}: the last good checkpoint is intact; lower"
                    " config.optim.learning_rate or config.optim.clip_norm"
                )
        means = {k: float(np.mean([s[k] for s in scalars])) for k in scalars[0]}
        # Means are compared, as one hard batch late in training is no explosion.
        watched = "head_1" if "head_1" in means else "loss"
        loss = means[watched]
        if loss > self.max_loss_ratio * max(self.mean_loss, LOSS_FLOOR):
            name = "head 1's loss" if watched == "head_1" else "the loss"
            raise TrainingStopped(
                f"{name} rose to {loss:.4g} by step {steps[-1]} from a mean of"
                f" {self.mean_loss:.4g}: the last good checkpoint is intact; lower"
                " config.optim.learning_rate, or raise config.train.max_loss_ratio"
            )
        known = math.isfinite(self.mean_loss)
        self.mean_loss = 0.5 * self.mean_loss + 0.5 * loss if known else loss
        seconds = time.perf_counter() - self.since
        means["steps_per_second"] = len(steps) / seconds
        means["audio_seconds_per_second"] = (
            sum(float(s["audio_seconds"]) for s in scalars) / seconds
        )
        self.since = time.perf_counter()
        return means
