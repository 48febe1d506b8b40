"""The training loop: resumable to the bit, stopped by signals without loss, halted by NaN."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import tqdm

from mtp_jax import interrupts
from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, write_json
from mtp_jax.config import Config, ConfigError
from mtp_jax.data import Batch, Report, Source, open_source, train_batches
from mtp_jax.decoding import CtcGreedy, Greedy, Strategy
from mtp_jax.distributed import multihost, sharding
from mtp_jax.evaluation.compare import outcome_errors
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.evaluation.scalars import warn_of_lost_scalars
from mtp_jax.evaluation.task import Task
from mtp_jax.inference.encoder_cache import with_encoder_cache
from mtp_jax.inference.greedy_text import pretrained_model, with_greedy_text
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import make_model
from mtp_jax.models.heads import DRAFT_TOKENS
from mtp_jax.models.params import by_path, count, matches, merge
from mtp_jax.training.board import Board
from mtp_jax.training.draft_tokens import draft_tokens, with_draft_tokens
from mtp_jax.training.initialization import starting_point
from mtp_jax.training.monitor import LossMonitor
from mtp_jax.training.mwer import search_seconds
from mtp_jax.training.optimizer import learning_rate, make_optimizer
from mtp_jax.training.run_tokenizer import open_tokenizer
from mtp_jax.training.step import TrainState, init_state, make_train_step
from mtp_jax.training.stop import Stop
from mtp_jax.training.word_hashes import Spelling

log = logging.getLogger("mtp_jax")


def finished(config: Config, workdir: Workdir) -> bool:
    """Whether the run has made its last step, and decoded dev behind it."""
    last = config.optim.steps * config.optim.accumulate
    with Checkpoints(workdir.path, config.train.keep_best) as checkpoints:
        return checkpoints.latest_step == last and _is_evaluated(workdir, checkpoints, last)


def train(config: Config, workdir: Workdir) -> Runner:
    """Trains until ``config.optim.steps``, from the last checkpoint if there is one.

    Returns:
        The best checkpoint on dev, ready to decode.

    Raises:
        TrainingStopped: a loss went wrong.
        Interrupted: by Ctrl-C or SIGTERM, after a checkpoint was saved.
    """
    with interrupts.handled():
        return _train(config, workdir)


def _train(config: Config, workdir: Workdir) -> Runner:
    mesh = sharding.make_mesh(config.mesh)
    source, dev = _open_data(config)
    if config.data.text == "greedy":
        source, dev = _with_own_text(config, mesh, source, dev)
    with multihost.process_zero_first("making the tokenizer"):
        tokenizer = open_tokenizer(config, workdir, source)
    interrupts.raise_if_requested()
    model = make_model(config, tokenizer)
    optimizer = make_optimizer(config.optim)
    initial, imported = starting_point(model, tokenizer, workdir, mesh)
    state, shardings = init_state(model, optimizer, mesh, initial, imported)
    runner = Runner(model, state.model_params, tokenizer, mesh, by_path(state.imported))
    if config.whisper.cached and "whisper" in state.params:
        raise ConfigError(
            "config.whisper.cached needs whisper/*, LoRA included, among config.optim.freeze"
        )
    _warn_of_patterns(config, by_path(state.model_params))
    source = with_encoder_cache(source, runner, config.augment.speeds)
    dev = with_encoder_cache(dev, runner)
    if config.heads.vocabulary and DRAFT_TOKENS not in by_path(initial):
        tokens = draft_tokens(source, tokenizer, config.heads.vocabulary)
        state = with_draft_tokens(state, shardings, tokens)
    runner.params = None  # the first step donates them
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
        elif multihost.is_process_zero():
            workdir.write_dev({})
        interrupts.raise_if_requested()
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
        with contextlib.closing(batches):  # its threads read ahead
            state = _Loop(config, workdir, checkpoints, runner, dev, optimizer, shardings).run(
                state, batches
            )
        _write_report(workdir, report)
        own = merge(state.params, state.frozen), merge(shardings.params, shardings.frozen)
        runner.params = merge(checkpoints.restore_best(*own), state.imported)
    return runner


def _open_data(config: Config) -> tuple[Source, Source]:
    """Training data and dev. Test is opened too: a slip in its name is found before training."""
    opened = {}
    for name in ("train", "dev", "test"):
        interrupts.raise_if_requested()
        spec, rate = getattr(config.data, name), config.front_end.sample_rate
        # Test is decoded in chunks where it is longer than the longest bucket.
        longest = math.inf if name == "test" else None
        source = opened[name] = open_source(spec, config.data, rate, longest)
        held = [len(source.utterances), sum(u.seconds for u in source.utterances)]
        multihost.assert_same(f"{name} data", held)
    return opened["train"], opened["dev"]


def _with_own_text(
    config: Config, mesh: jax.sharding.Mesh, source: Source, dev: Source
) -> tuple[Source, Source]:
    """Training data and dev with the texts that ``config.pretrained.model`` writes itself."""
    teacher = pretrained_model(config, mesh)
    source = with_encoder_cache(source, teacher, config.augment.speeds)
    dev = with_encoder_cache(dev, teacher)
    return with_greedy_text(source, teacher), with_greedy_text(dev, teacher)


def _is_evaluated(workdir: Workdir, checkpoints: Checkpoints, step: int) -> bool:
    """Whether dev was decoded behind `step`, and its parameters are kept if they are the best.

    Earlier versions noted no outcomes, and decoded dev before they saved a step.
    """
    outcomes = workdir.read_dev()
    if outcomes is None:
        return True
    if step not in outcomes:
        return False
    best = min(outcomes, key=lambda each: (outcomes[each], -each))
    return step != best or checkpoints.holds_best(step)


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


class _Loop:
    """The steps of a run, and what is between them.

    Args:
        config: of the run; `workdir` and `checkpoints`: where it is saved.
        runner: decodes dev. It holds parameters only while it does: each step donates them.
        dev: the data that chooses the best checkpoint.
        optimizer: of the run; `shardings`: of its state.
    """

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        checkpoints: Checkpoints,
        runner: Runner,
        dev: Source,
        optimizer: Any,
        shardings: Any,
    ) -> None:
        self._config, self._workdir, self._checkpoints = config, workdir, checkpoints
        self._runner, self._dev, self._stop = runner, dev, Stop()
        self._last = config.optim.steps * config.optim.accumulate
        written = config.mwer.words == "written"
        self._spelling = (
            Spelling.of(runner.tokenizer, written=written) if config.mwer.weight else None
        )
        self._step_fn = make_train_step(runner.model, optimizer, shardings, self._spelling)
        self._monitor = LossMonitor(config.train.max_loss_ratio)
        self._rate = learning_rate(config.optim)
        self._dev_strategy: Strategy = Greedy()
        trained, auxiliary = by_path(shardings.params), runner.model.auxiliary
        if all(path.startswith(auxiliary) for path in trained) and "ctc/kernel" in trained:
            self._dev_strategy = CtcGreedy()  # the decoder's own text stays

    def run(self, state: TrainState, batches: Iterator[Batch]) -> TrainState:
        """Steps up to the last; the state behind it.

        Raises:
            Interrupted: once the state is saved.
            TrainingStopped: a loss went wrong.
        """
        c, start = self._config.train, int(state.step)
        n_best_timed = self._spelling is None
        scalars = self._workdir.tensorboard if multihost.is_process_zero() else None
        if scalars is not None and start:
            warn_of_lost_scalars(self._workdir, start)
        with (
            Board(scalars, start) as self._board,
            tqdm.tqdm(
                total=self._last,
                initial=start,
                unit="step",
                dynamic_ncols=True,
                disable=not multihost.is_process_zero(),
            ) as self._bar,
            interrupts.deferred(),  # self._stop decides
        ):
            try:
                if self._has_dev(start) and not _is_evaluated(
                    self._workdir, self._checkpoints, start
                ):
                    self._evaluate(state)  # which was stopped
                for done in range(start + 1, self._last + 1):
                    batch = multihost.place_share(next(batches), self._runner.mesh)
                    state, metrics = self._step_fn(state, batch)
                    self._monitor.pending.append((done, metrics))
                    self._bar.update()
                    has_dev = self._has_dev(done)
                    saving = done % c.checkpoint_every == 0 or done == self._last
                    if done % c.log_every == 0 or has_dev or saving:
                        means = self._log(done)
                    if saving:
                        self._board.flush()  # those of steps that are not made again
                        self._checkpoints.save(state)
                    self._stop.raise_if_requested()
                    if has_dev:
                        self._evaluate(state)
                        if not n_best_timed:
                            self._time_n_best(state, batch, means["steps_per_second"])
                            n_best_timed = True
                        self._monitor.since = time.perf_counter()
            except interrupts.Interrupted as stopped:
                if self._monitor.pending:  # a state that went wrong is not saved
                    self._log(int(state.step))
                self._checkpoints.save(state)
                self._checkpoints.wait()
                saved = f"step {int(state.step)} is saved, and the same command goes on from there"
                raise interrupts.Interrupted(stopped.number, saved) from None
        return state

    def _has_dev(self, step: int) -> bool:
        """Whether dev is decoded behind `step`."""
        return step > 0 and (step % self._config.train.dev_every == 0 or step == self._last)

    def _log(self, step: int) -> dict[str, float]:
        """Checks and writes the scalars of the steps since the last time; their means.

        Raises:
            TrainingStopped: a loss went wrong.
        """
        means = self._monitor.check()
        for name, value in means.items():
            self._board.add_scalar(f"train/{name}", value, step)
        updates = step // self._config.optim.accumulate
        self._board.add_scalar("train/learning_rate", float(self._rate(updates)), step)
        shown = ("loss", "head_1", "ctc")
        self._bar.set_postfix({name: f"{means[name]:.3f}" for name in shown if name in means})
        return means

    def _evaluate(self, state: TrainState) -> None:
        """Decodes dev, and offers the parameters as the best.

        Raises:
            Interrupted: between two batches.
        """
        step, options = int(state.step), self._config.evaluation
        self._runner.params = state.model_params
        try:
            batches = Task.of(self._dev, self._runner).batches(max(options.batch_sizes))
            decoded = self._until_stop(batches)
            outcome = decode_source(self._runner, self._dev, decoded, self._dev_strategy)
        finally:
            self._runner.params = None
        wer = outcome_errors(outcome, options.normalizer).percent
        self._board.add_scalar("dev/wer", wer, step)
        self._say(f"step {step}: dev WER {wer:.2f} %")
        self._checkpoints.save_best(state, wer)
        self._board.flush()
        if multihost.is_process_zero():
            self._workdir.write_dev((self._workdir.read_dev() or {}) | {step: wer})

    def _until_stop(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._stop.raise_if_requested()
            yield batch

    def _time_n_best(self, state: TrainState, batch: Batch, steps_per_second: float) -> None:
        seconds = search_seconds(self._runner.model, state.model_params, batch)
        share = seconds * steps_per_second
        self._board.add_scalar("train/nbest_share", share, int(state.step))
        self._say(f"making n-best lists takes about {100 * share:.0f} % of a step")

    def _say(self, sentence: str) -> None:
        if multihost.is_process_zero():
            self._bar.write(sentence)
