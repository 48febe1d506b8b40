"""What prefix beam search costs, by K, side by side in one run.

    python -m bench.prefix_beam --workdir=runs/mtp [--beams=1,2,4,8,16] [--batch_size=8]
        [--rounds=5]

For each K: decoder calls and seconds of the whole search, of beam search (one token a call) and of
ours, front end and encoder included; milliseconds of a loop step of either; and the share of beam
search's step that moving the cache's rows takes (ours moves them once a round). Medians over
rounds; compilation is apart.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from bench.in_turn import in_turn, seconds
from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained model", required=True)
_BEAMS = flags.DEFINE_list("beams", ["1", "2", "4", "8", "16"], "K")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "utterances a batch")
_UTTERANCES = flags.DEFINE_integer("utterances", 64, "of the test split, a round")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that each search is made")


def clocked(run: Callable[[], Any]) -> float:
    """Median seconds over rounds; the first, which compiles, does not count."""
    taken = []
    for _ in range(_ROUNDS.value + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    config = Workdir(_WORKDIR.value).read_config()
    cli.start_jax(config)
    from mtp_jax.data import open_source
    from mtp_jax.decoding import BeamSearch, PrefixBeam, Strategy
    from mtp_jax.evaluation.outcome import decode_source
    from mtp_jax.evaluation.task import Task
    from mtp_jax.inference.decoder_functions import bind_decoder, encode
    from mtp_jax.inference.load import load

    runner = load(Workdir(_WORKDIR.value))
    source = open_source(config.data.test, config.data, config.front_end.sample_rate)
    batches = Task.of(source, runner).batches(_BATCH_SIZE.value)
    batches = list(itertools.islice(batches, max(1, _UTTERANCES.value // _BATCH_SIZE.value)))
    model, params = runner.model, runner.params
    one = runner.place(batches[-1]._replace(tokens=batches[-1].tokens[:, :0]))
    _, prompt = bind_decoder(
        model, params, jax.jit(encode, static_argnums=0)(model, params, one)
    ).prefill(0)
    move = jax.jit(lambda cache, rows: cache.gather_rows(rows), donate_argnums=0)

    print(
        " K   calls: beam, ours   seconds: beam, ours   ms a step: beam, ours   moving rows, beam"
    )
    for beams in map(int, _BEAMS.value):
        e = config.evaluation
        searches: dict[str, Strategy] = {
            "beam": BeamSearch(beams),
            "ours": PrefixBeam(beams, 0.0, e.draft_width, e.beam_rounds),
        }
        runs = in_turn(
            {
                name: functools.partial(decode_source, runner, source, batches, search)
                for name, search in searches.items()
            },
            _ROUNDS.value,
        )
        wall = {name: seconds(outcomes) for name, outcomes in runs.items()}
        calls = {n: runs[n][0].calls / len(runs[n][0].hypotheses) for n in runs}
        step = {n: wall[n] / runs[n][0].loop_steps for n in runs}
        cache = [prompt.fork(beams, config.data.max_tokens)]
        places = jnp.arange(len(cache[0].length))[None]

        def moving(cache: list[Any] = cache, places: jax.Array = places) -> Any:
            # The prompt stays: only what hypotheses added is given away and comes back.
            cache[0] = move(cache[0].replace(prompt=None), places)
            return cache[0]

        print(
            f"{beams:2d}   {calls['beam']:11.2f} {calls['ours']:5.2f}"
            f"   {wall['beam']:13.2f} {wall['ours']:5.2f}"
            f"   {1000 * step['beam']:15.1f} {1000 * step['ours']:5.1f}"
            f"   {100 * clocked(moving) / step['beam']:19.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
