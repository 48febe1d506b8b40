"""Wall clock of Whisper over windows of 30 s padded with silence, against the true length.

    python -m bench.windows --workdir=runs/whisper [--batch_size=1,8] [--rounds=5] [--utterances=64]

Reads the CTC output of the same utterances both ways, in turn; prints medians over rounds of the
seconds, padded over true, and how many seconds of audio each does a second. Compilation is apart.
`bench/real_speech.py` trains a model either way, *true_length* and *padded*.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys

from absl import flags

from bench.in_turn import in_turn, rtfx, seconds
from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", None, "of a model behind Whisper", required=True)
_PRETRAINED = cli.pretrained_flag()
_BATCH_SIZE = flags.DEFINE_list("batch_size", ["1", "8"], "batch sizes")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each batch size is read")
_UTTERANCES = flags.DEFINE_integer("utterances", 64, "of the test split, a round")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    workdir = Workdir(_WORKDIR.value)
    config = workdir.read_config()
    if not config.whisper.present:
        raise ConfigError(f"{_WORKDIR.value} has no Whisper encoder: give a model that has one")
    cli.start_jax(config)
    from mtp_jax.data import open_source
    from mtp_jax.decoding import CtcGreedy
    from mtp_jax.evaluation.outcome import decode_source
    from mtp_jax.evaluation.task import Task
    from mtp_jax.inference.load import load
    from mtp_jax.inference.runner import Runner
    from mtp_jax.models.build import make_model

    trained = load(workdir, pretrained=_PRETRAINED.value)
    source = open_source(config.data.test, config.data, config.front_end.sample_rate)
    ways = {}
    for padded in (False, True):
        whisper = dataclasses.replace(config.whisper, padded=padded)
        model = make_model(dataclasses.replace(config, whisper=whisper), trained.tokenizer)
        ways[padded] = Runner(model, trained.params, trained.tokenizer, trained.mesh)
    print("batch  padded over true   RTFx: true length   padded")
    for size in map(int, _BATCH_SIZE.value):
        count = max(1, _UTTERANCES.value // size)
        batches = list(itertools.islice(Task.of(source, trained).batches(size), count))
        runs = in_turn(
            {
                padded: functools.partial(decode_source, runner, source, batches, CtcGreedy())
                for padded, runner in ways.items()
            },
            _ROUNDS.value,
        )
        ratio, fast, slow = seconds(runs[True], runs[False]), rtfx(runs[False]), rtfx(runs[True])
        print(f"{size:5d}  {ratio:16.2f}   {fast:17.0f}   {slow:6.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
