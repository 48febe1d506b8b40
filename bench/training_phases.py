"""Trains, and notes when each phase of the run begins; started by `bench.kills`.

``python -m bench.training_phases FILE -- FLAGS`` is ``python -m mtp_jax.train FLAGS``. FILE gets a
line ``PHASE SECONDS`` as each phase begins, by the clock that never steps back.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from mtp_jax import cli
from mtp_jax import train as command


def _watch(note: Callable[[str], None]) -> None:
    from mtp_jax.checkpoints.checkpoint import Checkpoints
    from mtp_jax.evaluation import evaluate
    from mtp_jax.training import loop

    def noted(phase: str, function: Callable[..., Any], then: str = "") -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            note(phase)
            result = function(*args, **options)
            if then:
                note(then)
            return result

        return wrapped

    make_step = loop.make_train_step

    def step_function(*args: Any) -> Callable[..., Any]:
        step, phases = make_step(*args), iter(["compile"])
        return lambda *given: noted(next(phases, "step"), step, "step")(*given)

    loop.make_train_step = step_function
    loop._Loop._evaluate = noted("dev", loop._Loop._evaluate, "step")  # type: ignore[method-assign]
    for name in ("save", "save_best"):  # what is written behind it counts as part of it
        setattr(Checkpoints, name, noted("save", getattr(Checkpoints, name)))
    evaluate.tune = noted("evaluation", evaluate.tune)


def main() -> int:
    split = sys.argv.index("--")
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.argv[1:] = sys.argv[split + 1 :]

    def note(phase: str) -> None:
        os.write(file, f"{phase} {time.monotonic()}\n".encode())

    def watched(argv: list[str]) -> None:
        _watch(note)
        command.main(argv)

    return cli.run(watched, goes_on=lambda: True)


if __name__ == "__main__":
    sys.exit(main())
