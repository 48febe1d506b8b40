"""Training curves of several runs in one picture.

    python -m bench.curves --runs="MWER:runs/mwer_0,runs/mwer_1;cross-entropy:runs/ce_0" \\
        --scalar=dev/wer --output=docs/images/mwer_dev.png [--label="WER on dev, %"] [--start=11.45]

Reads TensorBoard scalars of the workdirs; a group's runs share a colour; --start is drawn at
step 0.
"""

from __future__ import annotations

import matplotlib
from absl import app, flags

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.evaluation.scalars import read_scalars

_RUNS = flags.DEFINE_string("runs", None, "NAME:WORKDIR[,WORKDIR];...", required=True)
_SCALAR = flags.DEFINE_string("scalar", "dev/wer", "name of the scalar")
_LABEL = flags.DEFINE_string("label", None, "of the axis; default: the scalar's name")
_START = flags.DEFINE_float("start", None, "value that all runs begin with")
_OUTPUT = flags.DEFINE_string("output", None, "a PNG file", required=True)


def main(argv: list[str]) -> None:
    del argv
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, group in enumerate(_RUNS.value.split(";")):
        name, _, workdirs = group.partition(":")
        for i, workdir in enumerate(workdirs.split(",")):
            found = read_scalars(Workdir(workdir)).get(_SCALAR.value, {})
            if not found:
                raise app.UsageError(f"{workdir} has no scalar {_SCALAR.value}")
            if _START.value is not None:
                found[0] = _START.value
            steps = sorted(found)
            label = name if i == 0 else None
            axes.plot(steps, [found[s] for s in steps], ".-", color=f"C{number}", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(_LABEL.value or _SCALAR.value)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(_OUTPUT.value, dpi=150)
    print(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
