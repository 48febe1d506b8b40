"""Trains as one of several processes; run by tests/test_processes.py.

``python -m tests.one_of_several OUT [DIE_AT SIGNAL] -- FLAGS`` is ``python -m mtp_jax.train FLAGS``
without the closing evaluation. ``OUT.PROCESS.jsonl`` gets a line ``[step, [index, ...]]`` for every
batch that this process took; behind step DIE_AT the process sends itself the signal.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import jax

from mtp_jax import cli
from mtp_jax import train as command
from mtp_jax.evaluation import evaluate
from mtp_jax.training import loop


def main() -> int:
    split = sys.argv.index("--")
    out, *death = sys.argv[1:split]
    sys.argv[1:] = sys.argv[split + 1 :]
    make_batches, make_step = loop.train_batches, loop.make_train_step

    def batches(*args, start, **options):
        stream, report = make_batches(*args, start=start, **options)

        def noted():
            with Path(f"{out}.{jax.process_index()}.jsonl").open("a", buffering=1) as file:
                for step in itertools.count(start):
                    batch = next(stream)
                    file.write(json.dumps([step, batch.index.tolist()]) + "\n")
                    yield batch

        return noted(), report

    def step_fn(*args):
        step = make_step(*args)

        def mortal(state, batch):
            state, metrics = step(state, batch)
            if death and int(state.step) == int(death[0]):
                os.kill(os.getpid(), signal.Signals[death[1]])
            return state, metrics

        return mortal

    loop.train_batches, loop.make_train_step = batches, step_fn
    evaluate.tune = lambda *args: 1.0
    evaluate.evaluate = lambda *args: {}
    return cli.run(command.main)


if __name__ == "__main__":
    sys.exit(main())
