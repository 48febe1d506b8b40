"""The training loop: resumable to the bit, stopped by SIGTERM without loss, halted by NaN."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from tensorboardX import SummaryWriter

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, write_json
from mtp_jax.config import Config, ConfigError
from mtp_jax.data import Batch, Report, Source, open_source, train_batches
from mtp_jax.decoding import Greedy
from mtp_jax.distributed import multihost, sharding
from mtp_jax.evaluation.compare import Task, word_error_rate
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.inference.encoder_cache import with_encoder_cache
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import make_model
from mtp_jax.models.params import by_path, count, matches, merge
from mtp_jax.training.initialization import starting_point
from mtp_jax.training.mwer import search_seconds
from mtp_jax.training.optimizer import learning_rate, make_optimizer
from mtp_jax.training.run_tokenizer import open_tokenizer
from mtp_jax.training.step import TrainState, init_state, make_train_step
from mtp_jax.training.word_hashes import Spelling

log = logging.getLogger("mtp_jax")


class TrainingStopped(RuntimeError):
    """Training ended before its last step; the message says why, and how to go on.

    Args:
        message: one sentence.
        exit_status: of the command.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclasses.dataclass
class LossMonitor:
    """Scalars of the steps since the last look: kept on the device, checked and logged together.

    Attributes:
        explosion: head 1's mean loss between two looks may not exceed this multiple of what it
            was (the whole loss may be near 0 or below it, with MWER).
    """

    explosion: float
    pending: list[tuple[int, dict[str, jax.Array]]] = dataclasses.field(default_factory=list)
    mean_loss: float = math.inf
    audio_seconds: float = 0.0
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def check(self) -> dict[str, float]:
        """Means over the pending steps.

        Raises:
            TrainingStopped: a loss or gradient is not finite, or the loss exploded.
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
        loss = means["head_1"]
        if loss > self.explosion * self.mean_loss:
            raise TrainingStopped(
                f"head 1's loss rose to {loss:.4g} by step {steps[-1]} from a mean of"
                f" {self.mean_loss:.4g}: the last good checkpoint is intact; lower"
                " config.optim.learning_rate, or raise config.train.explosion"
            )
        known = math.isfinite(self.mean_loss)
        self.mean_loss = 0.5 * self.mean_loss + 0.5 * loss if known else loss
        now = time.perf_counter()
        means["steps_per_second"] = len(steps) / (now - self.since)
        means["audio_seconds_per_second"] = sum(float(s["audio_seconds"]) for s in scalars) / (
            now - self.since
        )
        self.since = now
        return means


class Terminated:
    """Whether SIGTERM has been received; use as a context manager.

    Of several processes one may receive it (a machine is to be taken away): JAX then chooses a
    step that none has passed, and all stop there.
    """

    def __enter__(self) -> Terminated:
        self._received = False
        self._before: Any = signal.SIG_DFL
        if jax.process_count() == 1:  # otherwise JAX listens for the signal, from the start
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *unused: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def at(self, step: int) -> bool:
        """Whether to stop behind `step`; asked once a step."""
        if jax.process_count() == 1:
            return self._received
        return bool(multihost_utils.reached_preemption_sync_point(step))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


def finished(config: Config, workdir: Workdir) -> bool:
    """Whether the run has made its last step."""
    with Checkpoints(workdir.path, config.train.keep_best) as checkpoints:
        return checkpoints.latest_step == config.optim.steps * config.optim.accumulate


def train(config: Config, workdir: Workdir) -> Runner:
    """Trains until ``config.optim.steps``, from the last checkpoint if there is one.

    Returns:
        The best checkpoint on dev, ready to decode.

    Raises:
        TrainingStopped: by SIGTERM (after a checkpoint was saved) or by a loss gone wrong.
    """
    mesh = sharding.make_mesh(config.mesh)
    rate = config.front_end.sample_rate
    source = open_source(config.data.train, config.data, rate)
    dev = open_source(config.data.dev, config.data, rate)
    for what, opened in (("training data", source), ("dev data", dev)):
        multihost.assert_same(
            what, [len(opened.utterances), sum(u.seconds for u in opened.utterances)]
        )
    with multihost.process_zero_first("making the tokenizer"):
        tokenizer = open_tokenizer(config, workdir, source)
    model = make_model(config, tokenizer)
    optimizer = make_optimizer(config.optim)
    start = starting_point(model, tokenizer, workdir, mesh)
    state, shardings = init_state(model, optimizer, mesh, *start)
    runner = Runner(model, state.model_params, tokenizer, mesh, by_path(state.imported))
    if config.whisper.cached and "whisper" in state.params:
        raise ConfigError(
            "config.whisper.cached needs whisper/*, LoRA included, among config.optim.freeze"
        )
    _warn_of_patterns(config, by_path(state.model_params))
    source = with_encoder_cache(source, runner, config.augment.speeds)
    dev = with_encoder_cache(dev, runner)
    log.info(
        "%.2f M parameters, %.2f M of them trained, %d devices (%s), %d utterances, %.2f h",
        count(state.model_params) / 1e6,
        count(state.params) / 1e6,
        mesh.size,
        jax.devices()[0].device_kind,
        len(source.utterances),
        sum(u.seconds for u in source.utterances) / 3600,
    )
    with Checkpoints(workdir.path, config.train.keep_best, alone=True) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state, shardings)
            log.info("going on from step %d", int(state.step))
        batches, report = train_batches(
            source,
            tokenizer,
            config,
            multiple=sharding.batch_divisor(mesh),
            share=multihost.share_of(mesh),
            start=int(state.step),
        )
        log.info("%s", report)
        _write_report(workdir, report)
        state = _loop(
            config, workdir, checkpoints, runner, dev, state, shardings, optimizer, batches
        )
        _write_report(workdir, report)
        own = merge(state.params, state.frozen), merge(shardings.params, shardings.frozen)
        runner.params = merge(checkpoints.restore_best(*own), state.imported)
    return runner


def _warn_of_patterns(config: Config, paths: Collection[str]) -> None:
    """A pattern with a slip in it would freeze nothing, and say nothing."""
    rates = {f"rates={pattern}": pattern for pattern, _ in config.optim.rate_factors}
    patterns = {f"freeze={pattern}": pattern for pattern in config.optim.freeze} | rates
    for name, pattern in patterns.items():
        if not any(map(matches((pattern.removeprefix("!"),)), paths)):
            log.warning("config.optim.%s matches no parameter", name)


def _write_report(workdir: Workdir, report: Report) -> None:
    if multihost.is_process_zero():
        write_json(workdir.report, report.to_json())


def _board(workdir: Workdir, start: int) -> SummaryWriter:
    """A writer of scalars, which of several processes only the first keeps."""
    if multihost.is_process_zero():
        return SummaryWriter(str(workdir.tensorboard), purge_step=start)
    return SummaryWriter(write_to_disk=False)


def _loop(
    config: Config,
    workdir: Workdir,
    checkpoints: Checkpoints,
    runner: Runner,
    dev: Source,
    state: TrainState,
    shardings: Any,
    optimizer: Any,
    batches: Iterator[Batch],
) -> TrainState:
    """Steps up to the last; the state behind it."""
    c, last = config.train, config.optim.steps * config.optim.accumulate
    start = int(state.step)
    spelling = Spelling.of(runner.tokenizer) if config.mwer.weight else None
    step_fn = make_train_step(runner.model, optimizer, shardings, spelling)
    monitor, rate = LossMonitor(c.explosion), learning_rate(config.optim)
    n_best_timed = False
    dev_task = Task.of(dev, runner)
    with (
        _board(workdir, start) as board,
        tqdm.tqdm(
            total=last,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not multihost.is_process_zero(),
        ) as bar,
        Terminated() as terminated,
    ):
        say = bar.write if multihost.is_process_zero() else log.debug
        for step in range(start, last):
            batch = multihost.place_share(next(batches), runner.mesh)
            state, metrics = step_fn(state, batch)
            done = step + 1
            monitor.pending.append((done, metrics))
            bar.update()
            stop = terminated.at(done)
            at_dev = done % c.dev_every == 0 or done == last
            saving = done % c.checkpoint_every == 0 or done == last or stop
            if done % c.log_every == 0 or at_dev or saving:
                means = monitor.check()
                for name, value in means.items():
                    board.add_scalar(f"train/{name}", value, done)
                updates = done // config.optim.accumulate
                board.add_scalar("train/learning_rate", float(rate(updates)), done)
                bar.set_postfix(loss=f"{means['loss']:.3f}", head_1=f"{means['head_1']:.3f}")
            if at_dev:
                runner.params = state.model_params
                size = max(config.evaluation.batch_sizes)
                outcome = decode_source(runner, dev, dev_task.batches(size), Greedy())
                wer = word_error_rate(outcome, config.evaluation.normalizer)
                board.add_scalar("dev/wer", wer, done)
                say(f"step {done}: loss {means['loss']:.3f}, dev WER {wer:.2f} %")
                checkpoints.save_best(state, wer)
                if spelling and not n_best_timed:
                    n_best_timed = True
                    seconds = search_seconds(runner.model, state.model_params, batch)
                    share = seconds * means["steps_per_second"]
                    board.add_scalar("train/nbest_share", share, done)
                    say(f"making n-best lists takes about {100 * share:.0f} % of a step")
                monitor.since = time.perf_counter()
            if saving:
                checkpoints.save(state)
            if stop:
                checkpoints.wait()
                raise TrainingStopped(
                    f"SIGTERM: step {done} is saved, and the same command goes on from there",
                    exit_status=128 + signal.SIGTERM,
                )
    return state
