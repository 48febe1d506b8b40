"""Trains a recogniser, then compares its decoding strategies on test.

    python -m mtp_jax.train --config=configs/mtp.py [--workdir=DIR] [--config.FIELD=VALUE ...]

``--config=mtp`` is the same file wherever the package is installed; so with all of ``configs/``.
Killed at any time, the same command goes on where it stopped; run again in a finished workdir, it
only evaluates.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import contextlib
import logging
import sys
import time

from absl import flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Data
from mtp_jax.paths import check_writable

log = logging.getLogger("mtp_jax")

_CONFIG = cli.ConfigFlag("the run")
_WORKDIR = flags.DEFINE_string("workdir", None, "default: runs/NAME_OF_THE_CONFIG[_ARGUMENT]")


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    cli.refuse_arguments(argv)
    config = _CONFIG.value
    workdir = Workdir(_WORKDIR.value or f"runs/{_CONFIG.name}")
    _check(workdir, config.data)
    from mtp_jax.distributed import multihost  # imported late: errors in flags come at once
    from mtp_jax.evaluation import evaluate
    from mtp_jax.inference.load import load
    from mtp_jax.pretrained.sizes import completed
    from mtp_jax.training import loop

    config = completed(config)
    cli.start_jax(config)
    with contextlib.ExitStack() as held:
        with multihost.process_zero_first("claiming the workdir"):
            if multihost.is_process_zero():
                held.enter_context(workdir.alone())
            workdir.claim(config)
        if loop.finished(config, workdir):
            log.info("%s is finished: evaluating only", workdir.path)
            runner = load(workdir)
        else:
            runner = loop.train(config, workdir)
        tau = evaluate.tune(runner, workdir, config.evaluation.max_wer_increase)
        evaluate.evaluate(runner, workdir, config.data.test, tau, workdir.path)
    log.info("%.1f minutes", (time.perf_counter() - start) / 60)


def _check(workdir: Workdir, data: Data) -> None:
    """Finds out whether the workdir can be written, and the data read, before the run claims it.

    A run that has begun may need its training data no more.

    Raises:
        DataError, OutputError: they cannot.
    """
    from mtp_jax.data import check_sources

    check_writable(workdir.path, "workdir")
    begun = workdir.config.exists()
    check_sources([*([] if begun else [data.train]), data.dev, data.test], data)


if __name__ == "__main__":
    sys.exit(cli.run(main, goes_on=lambda: True))
