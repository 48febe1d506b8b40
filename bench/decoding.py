"""Wall clock of each strategy against greedy, side by side, by batch size.

    python -m bench.decoding --workdir=runs/mtp [--strategy=threshold,verify] [--batch_size=1,8,32]
        [--rounds=5] [--utterances=64]

Prints, for each batch size, decoder calls and seconds of a strategy divided by greedy's, and how
many seconds of audio it does a second: medians over rounds, in each of which every strategy decodes
the same utterances in turn. Compilation is apart. Front end and encoder count for both sides;
*ctc* is these alone.
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
from mtp_jax.decoding import registry

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained model", required=True)
_PRETRAINED = cli.pretrained_flag()
_STRATEGY = flags.DEFINE_list(
    "strategy", ["ctc", "threshold", "verify", "verify_ctc"], f"of {', '.join(registry.names())}"
)
_BATCH_SIZE = flags.DEFINE_list("batch_size", ["1", "8", "32"], "batch sizes")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each strategy decodes each batch size")
_UTTERANCES = flags.DEFINE_integer("utterances", 64, "of the test split, a round")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    workdir = Workdir(_WORKDIR.value)
    config = workdir.read_config()
    cli.start_jax(config)
    from mtp_jax.data import open_source
    from mtp_jax.decoding import Greedy
    from mtp_jax.evaluation.compare import table_rows
    from mtp_jax.evaluation.outcome import decode_source
    from mtp_jax.evaluation.task import Task
    from mtp_jax.inference.load import load

    runner = load(workdir, pretrained=_PRETRAINED.value)
    source = open_source(config.data.test, config.data, config.front_end.sample_rate)
    task = Task.of(source, runner)
    options = dataclasses.replace(config.evaluation, strategies=tuple(_STRATEGY.value))
    kept, reads = workdir.read_tau(), runner.model.vocabulary.has_ctc_hypothesis
    if "threshold" in _STRATEGY.value and config.heads.count > 1 and kept is None:
        raise ConfigError(f"{workdir.tau} is missing: run mtp_jax.evaluate first")
    rows = table_rows(options, config.heads.count, kept["tau"] if kept else 1.0, reads)
    chosen = {"greedy": Greedy()} | {
        entry.name: variant.strategy for entry, variant in rows if entry.name != "greedy"
    }
    print("batch  strategy         calls   seconds   (of greedy's)   RTFx")
    for size in map(int, _BATCH_SIZE.value):
        batches = list(itertools.islice(task.batches(size), max(1, _UTTERANCES.value // size)))
        runs = in_turn(
            {
                name: functools.partial(decode_source, runner, source, batches, strategy)
                for name, strategy in chosen.items()
            },
            _ROUNDS.value,
        )
        greedy = runs["greedy"]
        for name, outcomes in runs.items():
            calls, share = outcomes[0].calls / greedy[0].calls, seconds(outcomes, greedy)
            print(
                f"{size:5d}  {name:15s}  {calls:5.2f}   {share:7.2f}   {rtfx(outcomes):19.0f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(cli.run(main))
