"""Checkpoints of a workdir: the latest, to go on from, and the best on dev, to decode with.

Both are Orbax checkpoints; nothing is ever unpickled. A save that was interrupted is never taken
for a checkpoint, and the one before it stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, cast

import jax
from orbax.checkpoint import v1 as ocp

from mtp_jax.checkpoints.digest import DamageError, check, digests
from mtp_jax.models.params import Params, by_path, merge
from mtp_jax.paths import absolute, sync_folder
from mtp_jax.untrusted import read_json

_policies = ocp.training.preservation_policies
_LONGEST = 160  # characters of a reason
_NO_METADATA = "its metadata is missing or damaged"


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

    Raises:
        CheckpointError: a best checkpoint's WER is damaged.
    """

    def __init__(self, workdir: pathlib.Path, keep_best: int = 1, alone: bool = False) -> None:
        best = absolute(workdir) / "best"
        _refuse_unreadable_wer(best)
        with _without_noise():  # of metadata that are damaged: who reads the checkpoint is told
            self._latest = ocp.training.Checkpointer(
                absolute(workdir) / "checkpoints",
                save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
                preservation_policy=_policies.LatestN(2),
                cleanup_tmp_directories=alone,
            )
            self._best = ocp.training.Checkpointer(
                best,
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
        for checkpointer in (self._latest, self._best):
            with _named(checkpointer, reported=kind is not None):
                checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint to go on from."""
        latest = self._latest.latest
        return None if latest is None else latest.step

    def save(self, state: State) -> None:
        """Saves the training state in the background; its step is the position in the data.

        Raises:
            OSError: this or the save before cannot be written.
        """
        step, own = int(state.step), _without_imported(state)
        if step != self.latest_step:
            noted = {"sha256": digests(own)}
            with _named(self._latest):  # also of the save before
                self._latest.save_checkpointables_async(
                    step, {"state": own}, force=True, custom_metadata=noted
                )

    def wait(self) -> None:
        """Returns once every save has reached the disk.

        Raises:
            OSError: one cannot be written.
        """
        for checkpointer in (self._latest, self._best):
            with _named(checkpointer):
                checkpointer.wait()

    def restore(self, state: Saved, shardings: Any) -> Saved:
        """The newest state, on its devices, whatever mesh it was saved from.

        Args:
            state: the state at step 0; `shardings`: where each part goes.

        Raises:
            CheckpointError: it cannot be read, or does not fit the config.
        """
        step, directory = self.latest_step, self._latest.directory
        like = {"state": _abstract(_without_imported(state), _without_imported(shardings))}
        try:
            restored = _read(self._latest, step, like)["state"]
            return cast(Saved, dataclasses.replace(restored, imported=state.imported))
        except DamageError as error:
            earlier = [c.step for c in self._latest.checkpoints if c.step != step]
            goes_on = f"from step {earlier[-1]}" if earlier else "from the start"
            raise CheckpointError(
                f"checkpoint {step} in {directory} is damaged or does not fit the config"
                f" ({error}): remove {directory / str(step)}, and the same command goes on"
                f" {goes_on}"
            ) from error

    def save_best(self, state: State, wer: float) -> None:
        """Offers parameters whose dev WER (per cent) is `wer`; the best are kept.

        Those that were saved of the same step, by a run that ended before it noted them, may be
        damaged, and are replaced.

        Raises:
            OSError: they cannot be written.
        """
        step, own = int(state.step), merge(state.params, state.frozen)
        with _named(self._best):
            self._best.save_checkpointables(
                step,
                {"params": own},
                force=True,
                overwrite=step in {c.step for c in self._best.checkpoints},
                metrics={"wer": wer},
                custom_metadata={"sha256": digests(own)},
            )
            if jax.process_index() == 0:
                sync_folder(self._best.directory / str(step))

    def holds_best(self, step: int) -> bool:
        """Whether the parameters of `step` are among the best."""
        return step in {c.step for c in self._best.checkpoints if c.metrics}

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
            like = {"params": _abstract(shapes, shardings)}
            params: Params = _read(self._best, best[0], like)["params"]
            return params
        except DamageError as error:
            raise CheckpointError(
                f"checkpoint {best[0]} in {self._best.directory} does not fit the workdir's config"
                f" or is damaged ({error}): {self._remedy(best[0])}"
            ) from error

    def _remedy(self, step: int) -> str:
        """What to do about a best checkpoint that is damaged."""
        own, kept = self._best.directory / str(step), [c.step for c in self._latest.checkpoints]
        if step not in kept:
            return "put it back from a copy, or train again"
        later = [str(self._latest.directory / str(each)) for each in kept if each > step]
        return (
            f"put it back from a copy, or remove {' and '.join([str(own), *later])}, and training"
            " with the same command makes it again"
        )


def _refuse_unreadable_wer(best: pathlib.Path) -> None:
    """Before Orbax meets it, which raises anything."""
    for file in best.glob("*/metrics/metrics"):
        try:
            float(read_json(file)["wer"])
        except FileNotFoundError:  # it is being removed for a better one
            continue
        except (OSError, ValueError, KeyError, TypeError):
            folder = file.parent.parent
            raise CheckpointError(
                f"{file} is damaged: put it back from a copy, or remove {folder}, and training with"
                " the same command makes it again or takes the next best"
            ) from None


@contextlib.contextmanager
def _named(checkpointer: ocp.training.Checkpointer, reported: bool = False) -> Iterator[None]:
    """Has what cannot be written raise an OSError that names the folder.

    Args:
        checkpointer: what writes.
        reported: an error is on its way already, and nothing is raised beside it.
    """
    try:
        yield
        return
    except Exception as error:
        number = getattr(error, "errno", None) or _number_of(str(error))
        if number is None:
            raise
    _abandon_writes()
    if not reported:
        raise OSError(number, os.strerror(number), str(checkpointer.directory))


def _abandon_writes() -> None:
    """Keeps writes that nobody awaits from printing a trace each.

    Orbax writes all arrays at a time, and TensorStore's threads go on with the others where one has
    failed: they find the event loop closed, now or later.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if str(error) != "Event loop is closed":
            before(kind, error, trace)

    sys.excepthook = hook
    with warnings.catch_warnings(), _without_noise():
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never awaited
        gc.collect()


def _number_of(said: str) -> int | None:
    """The error of the system that TensorStore tells of in words."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    return next((number for number in numbers if os.strerror(number) in said), None)


def _refuse_without_digests(folder: pathlib.Path) -> None:
    """Its digests would be missing, and what else is damaged would be taken for what was saved."""
    try:
        read_json(folder / "_CHECKPOINT_METADATA")
    except (OSError, ValueError):
        raise ValueError(_NO_METADATA) from None


def _refuse_misfit(stored: Params, expected: Params) -> None:
    """Before Orbax meets it in the middle of many reads, of which it tells the first only."""
    found = by_path(stored)
    for path, x in by_path(expected).items():
        if path not in found:
            raise ValueError(f"it has no {path}")
        if found[path].shape != x.shape:
            raise ValueError(f"{path} is {found[path].shape}, not {x.shape}")


def _read(
    checkpointer: ocp.training.Checkpointer, step: int | None, like: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint holds, compared with the digests that were saved with it.

    Args:
        checkpointer: of the checkpoint; `step`: which.
        like: shapes and shardings of what is expected.

    Raises:
        DamageError: it is not what was saved, or does not fit; the message is short.
    """
    with _without_noise():
        try:
            stored = checkpointer.checkpointables_metadata(step)
            _refuse_without_digests(checkpointer.directory / str(step))
            if any(stored.metadata.get(name) is None for name in like):
                raise ValueError(_NO_METADATA)
            if "params" in like:
                _refuse_misfit(stored.metadata["params"], like["params"])
            whole: dict[str, Any] = checkpointer.load_checkpointables(step, like)
            saved = dict((stored.custom_metadata or {}).get("sha256", {}))
            for tree in whole.values():
                check(tree, saved)
            return whole
        except Exception as error:  # damaged files make Orbax raise anything
            reason = _reason(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never awaited
            gc.collect()  # of the reads that failed beside the first
    raise DamageError(reason)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Orbax reads all arrays at a time, and Python would tell of each read that nobody awaits.

    Nor does it warn of what it then fails with.
    """
    hook, loggers = sys.unraisablehook, [logging.getLogger(name) for name in ("asyncio", "absl")]
    disabled = [logger.disabled for logger in loggers]
    sys.unraisablehook = lambda unused: None
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


def _reason(error: Exception) -> str:
    """The beginning of what Orbax says, which may go on with the whole state."""
    line = (str(error).strip().splitlines() or [""])[0]
    if "incompatible handler" in line:  # so Orbax says, whatever it met
        return "its arrays cannot be read"
    short = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return short or type(error).__name__
