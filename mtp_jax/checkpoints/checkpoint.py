"""Checkpoints of a workdir: the latest, to go on from, and the best on dev, to decode with.

Both are Orbax checkpoints; nothing is ever unpickled. A save that was interrupted is never taken
for a checkpoint, and the one before it stays.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Protocol, TypeVar, cast

import jax
from orbax.checkpoint import v1 as ocp

from mtp_jax.models.params import Params, by_path, merge
from mtp_jax.paths import absolute

_policies = ocp.training.preservation_policies


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit; the message says which, and what to do."""


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


class State(Protocol):
    """A training state as checkpoints see it: `mtp_jax.training.step.TrainState`."""

    step: Any
    params: Any
    frozen: Any
    imported: Any


Saved = TypeVar("Saved", bound=State)


def _without_imported(state: Saved) -> Saved:
    return cast(Saved, dataclasses.replace(cast(Any, state), imported={}))


class Checkpoints:
    """The checkpoints under one workdir; use as a context manager.

    Args:
        workdir: holds ``checkpoints/STEP`` (the last two) and ``best/STEP``.
        keep_best: how many of the best are kept.
        alone: nobody else saves here, so that saves which did not end are removed.
    """

    def __init__(self, workdir: pathlib.Path, keep_best: int = 1, alone: bool = False) -> None:
        self._latest = ocp.training.Checkpointer(
            absolute(workdir) / "checkpoints",
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=_policies.LatestN(2),
            cleanup_tmp_directories=alone,
        )
        self._best = ocp.training.Checkpointer(
            absolute(workdir) / "best",
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=_policies.BestN(
                get_metric_fn=lambda metrics: metrics["wer"], reverse=True, n=keep_best
            ),
            cleanup_tmp_directories=alone,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is not None and issubclass(kind, jax.errors.JaxRuntimeError):
            return  # another process may be gone: a save that waits for it would never end
        self._latest.close()
        self._best.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint to go on from."""
        latest = self._latest.latest
        return None if latest is None else latest.step

    def save(self, state: State) -> None:
        """Saves the training state in the background; its step is the position in the data."""
        step, own = int(state.step), _without_imported(state)
        if step != self.latest_step:
            self._latest.save_checkpointables_async(step, {"state": own}, force=True)

    def wait(self) -> None:
        """Returns once every save has reached the disk."""
        self._latest.wait()
        self._best.wait()

    def restore(self, state: Saved, shardings: Any) -> Saved:
        """The newest state, on its devices, whatever mesh it was saved from.

        Args:
            state: the state at step 0; `shardings`: where each part goes.

        Raises:
            CheckpointError: it cannot be read, or does not fit the config.
        """
        like = {"state": _abstract(_without_imported(state), _without_imported(shardings))}
        try:
            restored = self._latest.load_checkpointables(self.latest_step, like)["state"]
            return cast(Saved, dataclasses.replace(restored, imported=state.imported))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {self.latest_step} in {self._latest.directory} cannot be restored:"
                f" remove it to go on from the one before ({_first_line(error)})"
            ) from error

    def save_best(self, state: State, wer: float) -> None:
        """Offers parameters whose dev WER (per cent) is `wer`; the best are kept."""
        step, own = int(state.step), merge(state.params, state.frozen)
        if step not in {c.step for c in self._best.checkpoints}:
            self._best.save_checkpointables(step, {"params": own}, force=True, metrics={"wer": wer})

    def best(self) -> tuple[int, float] | None:
        """Step and dev WER of the best checkpoint; the later of equals."""
        found = [(float(c.metrics["wer"]), -c.step) for c in self._best.checkpoints if c.metrics]
        if not found:
            return None
        wer, step = min(found)
        return -step, wer

    def restore_best(self, shapes: Params, shardings: Params) -> Params:
        """Parameters of the best checkpoint, on their devices.

        Args:
            shapes: arrays or shapes of those that are expected; `shardings`: where each goes.

        Raises:
            CheckpointError: there is none, or it does not fit the config.
        """
        best = self.best()
        if best is None:
            raise CheckpointError(f"{self._best.directory} holds no checkpoint: train first")
        try:
            stored = self._best.checkpointables_metadata(best[0]).metadata["params"]
            _refuse_misfit(stored, shapes)
            like = {"params": _abstract(shapes, shardings)}
            params: Params = self._best.load_checkpointables(best[0], like)["params"]
            return params
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {best[0]} in {self._best.directory} does not fit the workdir's config"
                f" or is damaged ({_first_line(error)})"
            ) from error


def _refuse_misfit(stored: Params, expected: Params) -> None:
    """Before Orbax meets it in the middle of many reads, of which it tells the first only."""
    found = by_path(stored)
    for path, x in by_path(expected).items():
        if path not in found:
            raise ValueError(f"it has no {path}")
        if found[path].shape != x.shape:
            raise ValueError(f"{path} is {found[path].shape}, not {x.shape}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
