"""Trains a recogniser, then compares its decoding strategies on test.

    python -m mtp_jax.train --config=configs/mtp.py [--workdir=DIR] [--config.FIELD=VALUE ...]

``--config=mtp`` is the same file wherever the package is installed; so with all of ``configs/``.
Killed at any time, the same command goes on where it stopped; run again in a finished workdir, it
only evaluates.
"""

from __future__ import annotations

import logging
import pathlib
import sys
import time

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import config_file, from_config_dict

log = logging.getLogger("mtp_jax")


class _FileOrName(config_flags.config_flags.ConfigFileFlagParser):
    """Of --config."""

    def parse(self, path: str) -> ConfigDict:
        name, *argument = path.split(":", 1)
        return super().parse(":".join([str(config_file(name)), *argument]))


_CONFIG = config_flags.DEFINE_config_file("config", None, "the run: a file or name of configs/")
flags.FLAGS["config"].parser = _FileOrName("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "default: runs/NAME_OF_THE_CONFIG")


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    cli.refuse_arguments(argv)
    from mtp_jax.distributed import multihost  # imported late: errors in flags come at once
    from mtp_jax.evaluation import evaluate
    from mtp_jax.inference.load import load
    from mtp_jax.pretrained.sizes import completed
    from mtp_jax.training import loop

    file = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    if not isinstance(_CONFIG.value, ConfigDict):  # ml_collections keeps a failure to itself
        raise flags.Error(f"--config={file} is not a config file: configs/ holds some")
    config = completed(from_config_dict(_CONFIG.value))
    workdir = Workdir(_WORKDIR.value or f"runs/{pathlib.Path(file).stem}")
    cli.start_jax(config)
    with multihost.process_zero_first("claiming the workdir"):
        workdir.claim(config)
    if loop.finished(config, workdir):
        log.info("%s is finished: evaluating only", workdir.path)
        runner = load(workdir)
    else:
        runner = loop.train(config, workdir)
    tau = evaluate.tune(runner, workdir, config.evaluation.max_wer_increase)
    evaluate.evaluate(runner, workdir, config.data.test, tau, workdir.path)
    log.info("%.1f minutes", (time.perf_counter() - start) / 60)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    sys.exit(cli.run(main))
