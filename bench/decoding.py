"""Wall clock of each strategy against greedy, side by side, by batch size.

    python -m bench.decoding --workdir=runs/mtp [--batch_size=1,8,32] [--rounds=5]

Prints, for each batch size, decoder calls and seconds of a strategy divided by greedy's: the
median over rounds, in each of which every strategy decodes the same utterances in turn, so that a
machine whose speed drifts slows all of them alike. Compilation is apart. Front end and encoder
count for both sides.
"""

from __future__ import annotations

import itertools
import statistics
import sys

from absl import flags

from mtp_jax import cli
from mtp_jax.config import ConfigError
from mtp_jax.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained model", required=True)
_BATCH_SIZE = flags.DEFINE_list("batch_size", ["1", "8", "32"], "batch sizes")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each strategy decodes each batch size")
_UTTERANCES = flags.DEFINE_integer("utterances", 64, "of the test split, a round")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    workdir = Workdir(_WORKDIR.value)
    config = workdir.read_config()
    cli.start_jax(config)
    from mtp_jax.comparison import Task
    from mtp_jax.data import open_source
    from mtp_jax.decoding import Greedy, Threshold, Verify
    from mtp_jax.model import load

    kept = workdir.read_tau()
    if kept is None:
        raise ConfigError(f"{workdir.tau} is missing: run mtp_jax.evaluate first")
    recognizer = load(workdir)
    source = open_source(config.data.test, config.data, config.front_end.sample_rate)
    task = Task.of(source, recognizer)
    strategies = {"greedy": Greedy(), "threshold": Threshold(kept["tau"]), "verify": Verify()}
    print("batch  strategy   calls   seconds   (of greedy's)")
    for size in map(int, _BATCH_SIZE.value):
        batches = list(itertools.islice(task.batches(size), max(1, _UTTERANCES.value // size)))
        runs = {name: [] for name in strategies}
        for _ in range(_ROUNDS.value + 1):  # the first compiles and warms up
            for name, strategy in strategies.items():
                runs[name].append(recognizer.run(source, batches, strategy))
        for name, outcomes in runs.items():
            pairs = zip(outcomes[1:], runs["greedy"][1:], strict=True)
            ratio = statistics.median(a.wall_seconds / b.wall_seconds for a, b in pairs)
            calls = outcomes[0].calls / runs["greedy"][0].calls
            print(f"{size:5d}  {name:9s}  {calls:5.2f}   {ratio:5.2f}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
