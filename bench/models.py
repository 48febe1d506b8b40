"""Several trained models side by side, against the greedy output of one of them.

    python -m bench.models --baseline=runs/m1_seed0,runs/m1_seed1 \\
        --models="M = 4 latent:runs/m4_seed0,runs/m4_seed1;M = 8 latent:runs/m8" [--batch_size=8]

Reads what evaluation left in each workdir (``results.json`` and ``hypotheses/``), or a file in its
place that bench/keep.py made of it, all of the same test set. A model is a name and its workdirs,
one a seed; seeds are averaged, and a strategy that one of them lacks is left out. Each row has WER
(and the range over seeds), its difference from the baseline's greedy WER with the 95 % interval of
a paired bootstrap over utterances (errors averaged over seeds), decoder calls, how many times fewer
than the model's own greedy, and RTFx at every batch size. ``--output`` draws WER against calls, on
test and over the sweep of tau on dev.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from matplotlib.lines import Line2D

from bench.keep import read
from mtp_jax.evaluation.metrics import ErrorRate, bootstrap_difference

_BASELINE = flags.DEFINE_list("baseline", None, "workdirs of the baseline", required=True)
_MODELS = flags.DEFINE_string("models", "", "NAME:WORKDIR[,WORKDIR];... besides the baseline")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "whose hypotheses are compared")
_OUTPUT = flags.DEFINE_string("output", "", "a PNG file: WER against calls of every model")


@dataclasses.dataclass(frozen=True)
class Run:
    """One strategy of one workdir.

    Attributes:
        row: of ``results.json``.
        errors: word errors by utterance.
        rtfx: by batch size.
    """

    row: dict[str, Any]
    errors: ErrorRate
    rtfx: dict[int, float]


def strategies(place: str, batch_size: int) -> dict[str, Run]:
    """Every strategy of a workdir, or of a file that bench/keep.py made, by its name."""
    rows = read(place)["rows"]
    found: dict[str, Run] = {}
    for row in rows:
        wide = row["strategy"] == "greedy" and row["options"].get("width", 1) > 1
        if row["batch_size"] != batch_size or wide:
            continue
        errors, units = zip(*row["word_errors"], strict=True)
        rtfx = {r["batch_size"]: r["rtfx"] for r in rows if _kind(r) == _kind(row)}
        found[row["strategy"]] = Run(row, ErrorRate(errors, units), rtfx)
    return found


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    return row["strategy"], json.dumps(row["options"], sort_keys=True)


def pooled(runs: list[Run]) -> ErrorRate:
    """Errors by utterance, summed over seeds: their rate is the mean of the seeds' rates."""
    errors = np.sum([run.errors.errors for run in runs], axis=0)
    units = np.sum([run.errors.units for run in runs], axis=0)
    return ErrorRate(tuple(errors.tolist()), tuple(units.tolist()))


def mean_calls(runs: list[Run]) -> float:
    """Decoder calls for the test set, the mean of the seeds."""
    return float(np.mean([run.row["decoder_calls"] for run in runs]))


MARKERS = {"greedy": "s", "threshold": "o", "verify": "D", "verify_ctc": "P"}


def draw(models: dict[str, list[str]], runs: dict[str, list[dict[str, Run]]], file: str) -> None:
    """WER against call reduction: on dev over the sweep of tau, on test as the table has it.

    What has twice the errors of the best or more is beyond the picture on dev.

    Args:
        models: workdirs, one a seed, by name; the first is the baseline.
        runs: the strategies of each.
        file: a PNG file.
    """
    matplotlib.use("agg")
    figure, (dev, test) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    colors = (*colors[::2], *colors[1::2])
    legend, best = [], np.inf
    for (name, places), by_seed, color in zip(models.items(), runs.values(), colors, strict=False):
        sweeps = [sweep for place in places if (sweep := read(place)["tau_sweep"])]
        columns = [
            [[row[axis] for row in sweep["rows"]] for axis in ("call_reduction", "wer")]
            for sweep in sweeps
        ]
        if sweeps and sweeps[0]["rows"]:
            greedy = np.mean([sweep["greedy_wer"] for sweep in sweeps])
            best = min(best, greedy)
            x, y = np.mean(columns, axis=0)
            dev.plot([1, *x[::-1]], [greedy, *y[::-1]], "o-", color=color, markersize=4)
        for strategy, marker in MARKERS.items():
            if strategy in by_seed[0]:
                chosen = [seed[strategy] for seed in by_seed]
                fewer = mean_calls([seed["greedy"] for seed in by_seed]) / mean_calls(chosen)
                look = {"color": color, "markersize": 9, "fillstyle": "none", "markeredgewidth": 2}
                test.plot(fewer, pooled(chosen).percent, marker, **look)
        legend.append(Line2D([], [], color=color, linewidth=4, label=name))
    for strategy, marker in MARKERS.items():
        look = {"color": "black", "linestyle": "", "fillstyle": "none", "markeredgewidth": 2}
        legend.append(Line2D([], [], marker=marker, label=strategy, **look))
    if np.isfinite(best):
        dev.set_ylim(best - 0.05 * best, 2 * best)
    dev.set_title("dev: threshold over the sweep of tau, from greedy at 1")
    test.set_title("test")
    figure.legend(handles=legend, loc="outside lower center", ncols=5, fontsize=9)
    for axes in (dev, test):
        axes.set_xlabel("times fewer decoder calls than the model's own greedy")
        axes.set_ylabel("word error rate, %")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def main(argv: list[str]) -> None:
    del argv
    models = {"baseline": _BASELINE.value}
    for entry in filter(None, _MODELS.value.split(";")):
        name, _, workdirs = entry.rpartition(":")
        models[name.strip()] = workdirs.split(",")
    size = _BATCH_SIZE.value
    read_runs = {name: [strategies(w, size) for w in workdirs] for name, workdirs in models.items()}
    greedy = [run["greedy"] for run in read_runs["baseline"]]
    reference = pooled(greedy)
    sizes = sorted(greedy[0].rtfx)
    if _OUTPUT.value:
        draw(models, read_runs, _OUTPUT.value)
    head = "| model | strategy | seeds | WER % | over seeds | - baseline's [95 %] | calls/utt |"
    print(head + " fewer calls |" + "".join(f" RTFx, batch {s} |" for s in sizes))
    print("|" + "---|" * (8 + len(sizes)))
    for name, by_seed in read_runs.items():
        for strategy in by_seed[0]:
            if not all(strategy in seed for seed in by_seed):
                continue
            runs = [seed[strategy] for seed in by_seed]
            ours = pooled(runs)
            each = [run.errors.percent for run in runs]
            # With unlike numbers of seeds the counts are brought to the same references.
            theirs = pooled(greedy * len(runs))
            low, high = bootstrap_difference(pooled(runs * len(greedy)), theirs)
            calls = mean_calls(runs)
            own_greedy = mean_calls([seed["greedy"] for seed in by_seed])
            utterances = len(ours.errors)
            options = ", ".join(f"{k} {v:g}" for k, v in runs[0].row["options"].items())
            label = f"{strategy} ({options})" if strategy == "threshold" else strategy
            fewer = f"{own_greedy / calls:.2f}x" if calls else "-"
            print(
                f"| {name} | {label} | {len(runs)} | {ours.percent:.2f} |"
                f" {min(each):.2f} to {max(each):.2f} |"
                f" {ours.percent - reference.percent:+.2f} [{low:+.2f}, {high:+.2f}] |"
                f" {calls / utterances:.2f} | {fewer} |"
                + "".join(f" {np.mean([r.rtfx.get(s, np.nan) for r in runs]):.0f} |" for s in sizes)
            )


if __name__ == "__main__":
    sys.exit(app.run(main))
