"""What a comparison looks like: a table to print, pictures, and the lines of ``results.json``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtp_jax.decoding import registry
from mtp_jax.evaluation.compare import Row
from mtp_jax.evaluation.outcome import Outcome
from mtp_jax.paths import write_whole

_COLUMNS = (
    ("strategy", "strategy"),
    ("batch", "batch_size"),
    ("WER %", "wer"),
    ("CER %", "cer"),
    ("calls/utt", "calls_per_utterance"),
    ("fewer calls", "call_reduction"),
    ("drafter calls/utt", "drafter_calls_per_utterance"),
    ("tokens/call", "tokens_per_call"),
    ("= greedy %", "identical_to_greedy"),
    ("accepted, heads 2..M, %", "acceptance_by_head"),
    ("RTFx", "rtfx"),
    ("compile s", "compile_seconds"),
)


def table(rows: list[Row], utterances: int) -> str:
    """The rows as a Markdown table; calls of a drafter have a column where there is one."""

    def cell(row: Row, key: str) -> str:
        if key == "strategy":
            options = ", ".join(f"{k} {v:g}" for k, v in row["options"].items())
            return f"{row['strategy']} ({options})" if options else str(row["strategy"])
        if key == "calls_per_utterance":
            return f"{row['decoder_calls'] / max(utterances, 1):.2f}"
        if key == "drafter_calls_per_utterance":
            return f"{row.get('drafter_calls', 0) / max(utterances, 1):.2f}"
        value = row[key]
        if value is None:
            return "-"
        if key == "acceptance_by_head":
            shares = ["-" if a is None else f"{100 * a:.0f}" for a in value]
            return " ".join(shares if len(shares) < 8 else [*shares[:4], "...", shares[-1]])
        if key == "identical_to_greedy":
            return f"{100 * value:.2f}"
        if key == "call_reduction":
            return f"{value:.2f}x"
        return f"{value:.0f}" if key in ("rtfx", "batch_size") else f"{value:.2f}"

    drafted = any(row.get("drafter_calls") for row in rows)
    columns = [c for c in _COLUMNS if drafted or c[1] != "drafter_calls_per_utterance"]
    lines = [[title for title, _ in columns]]
    lines += [[cell(row, key) for _, key in columns] for row in rows]
    return _markdown(lines)


def coverage(dataset: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know of the data: chunks, and what was left out and why.

    Args:
        dataset: as in ``results.json``.
    """
    lines = []
    if dataset["in_chunks"]:
        lines.append(
            f"{dataset['in_chunks']} of them are longer than the longest bucket, and were decoded"
            " in chunks; their calls and tokens are sums."
        )
    if dataset["left_out"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dataset["left_out"].items())
        counted = "" if dataset["left_out_count_as_deleted"] else "do not "
        lines.append(
            f"Left out: {dataset['skipped']} ({reasons}); their {dataset['left_out_words']} words,"
            f" as far as they are known, {counted}count as deleted."
        )
    return lines


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def write_hypotheses(folder: pathlib.Path, outcomes: Mapping[str, Outcome]) -> None:
    """One JSON-lines file an outcome: id, reference, text, tokens and decoder calls."""
    for label, outcome in outcomes.items():
        lines = [
            {
                "id": h.id,
                "reference": h.reference,
                "text": h.text,
                "tokens": len(h.tokens),
                "decoder_calls": h.calls,
                **({"drafter_calls": h.drafter_calls} if h.drafter_calls else {}),
            }
            for h in outcome.hypotheses
        ]
        _write_lines(folder / f"{label}.jsonl", lines)


def _write_lines(file: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, all of them or none; an error names the file."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(file, text.encode())


def beam_table(rows: list[Row], utterances: int) -> str:
    """The rows of beam searches as a Markdown table: calls, and WER of the best of n."""
    beams = [r for r in rows if r["oracle_wer"]]
    if not beams:
        return ""
    sizes = list(beams[0]["oracle_wer"])
    titles = ["search", "batch", "calls/utt", "fewer calls than beam"]
    lines = [[*titles, *(f"best of {n}, WER %" for n in sizes)]]
    ordinary = {r["batch_size"]: r["decoder_calls"] for r in beams if r["strategy"] == "beam"}
    for r in beams:
        size, calls = r["batch_size"], r["decoder_calls"]
        lines.append(
            [
                r["strategy"],
                str(size),
                f"{calls / max(utterances, 1):.2f}",
                f"{ordinary[size] / max(calls, 1):.2f}x" if size in ordinary else "-",
                *(f"{r['oracle_wer'][n]:.2f}" for n in sizes),
            ]
        )
    return _markdown(lines)


def write_nbest(
    folder: pathlib.Path, outcomes: Mapping[str, Outcome], pieces: Sequence[str]
) -> None:
    """One JSON-lines file an outcome with n-best lists.

    A line has id, reference, and hypotheses: text, score (nats), and each token's piece and
    confidence (its probability, given those before it).
    """
    for label, outcome in outcomes.items():
        if not any(h.nbest for h in outcome.hypotheses):
            continue
        lines = [
            {
                "id": h.id,
                "reference": h.reference,
                "hypotheses": [
                    {
                        "text": a.text,
                        "score": round(a.score, 4),
                        "tokens": [
                            [pieces[token], round(confidence, 4)]
                            for token, confidence in zip(a.tokens, a.confidences, strict=True)
                        ],
                    }
                    for a in h.nbest
                ],
            }
            for h in outcome.hypotheses
        ]
        _write_lines(folder / f"{label}.jsonl", lines)


def draw(results: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws WER against call reduction and acceptance by head from `results` into PNG files.

    Returns:
        The files written.
    """
    import matplotlib  # imported late: not needed to decode

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [r for r in results["rows"] if r["batch_size"] == results["rows"][-1]["batch_size"]]
    decoded = [r for r in rows if r["call_reduction"] is not None]
    written = []

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    sweep = results.get("tau_sweep") or {"rows": []}
    if sweep["rows"]:
        x = [r["call_reduction"] for r in sweep["rows"]]
        y = [r["wer"] for r in sweep["rows"]]
        axes.plot(x, y, "o-", color="tab:blue", alpha=0.45, label="threshold, dev, tau swept")
        axes.plot(1, sweep["greedy_wer"], "s", color="tab:gray", label="greedy, dev")
        last = ""
        for r in sweep["rows"]:  # one label for all taus that land on one point
            point = f"{r['call_reduction']:.2f} {r['wer']:.2f}"
            if point != last:
                at = (r["call_reduction"], r["wer"])
                axes.annotate(
                    f"{r['options']['tau']:g}",
                    at,
                    (0, 6),
                    textcoords="offset points",
                    fontsize=7,
                    ha="center",
                    color="tab:blue",
                )
            last = point
    for r in decoded:
        if r["wer"] is None or (r["strategy"] == "greedy" and r["options"].get("width", 1) != 1):
            continue
        entry = registry.get(r["strategy"])
        options = ", ".join(f"{k} {v:g}" for k, v in r["options"].items() if k != "width")
        label = f"{r['strategy']}, {results['dataset']['split']}" + (
            f", {options}" if options else ""
        )
        axes.plot(
            *(r["call_reduction"], r["wer"], entry.marker),
            color=entry.color,
            markersize=9,
            label=label,
        )
    axes.set_xlabel("times fewer decoder calls than greedy")
    axes.set_ylabel("word error rate, %")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    written.append(folder / "wer_against_calls.png")
    _save(figure, axes, written[-1])
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for r in decoded:
        entry = registry.get(r["strategy"])
        if r["acceptance_by_head"] and entry.needs_heads:  # else its drafts are not the heads'
            heads = range(2, 2 + len(r["acceptance_by_head"]))
            share = [float("nan") if a is None else 100 * a for a in r["acceptance_by_head"]]
            axes.plot(heads, share, "o-", label=r["strategy"], color=entry.color)
            axes.set_xticks(list(heads))
    axes.set_xlabel("head")
    axes.set_ylabel("drafts accepted, %")
    axes.set_ylim(0, 102)
    written.append(folder / "acceptance_by_head.png")
    _save(figure, axes, written[-1])
    plt.close(figure)
    return written


def _save(figure: Any, axes: Any, path: pathlib.Path) -> None:
    """Writes a picture, with grid and legend."""
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    with path.open("wb") as file:  # which may lie in a bucket
        figure.savefig(file, dpi=150)
