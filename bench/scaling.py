"""The tables of docs/scaling.md, from what ``mtp_jax.compile --output`` wrote.

python -m bench.scaling train FILE.json ...
python -m bench.scaling growth FILE.json ...
python -m bench.scaling decode FILE.json ...
python -m bench.scaling calls FILE.json ...
python -m bench.scaling models FILE.json ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
GIB = 2**30


def read(files: list[str]) -> list[Row]:
    """All rows, each with the name of its file."""
    return [
        row | {"file": Path(file).stem}
        for file in files
        for row in json.loads(Path(file).read_text())
    ]


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown; all columns but the first are figures."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def train(rows: list[Row]) -> str:
    head = ["run", "chips", "mesh", "utterances per chip", "GiB (arguments + temporaries)",
            "TFLOP", "GB moved", "compute ms", "memory ms", "interconnect ms", "not hidden ms",
            "step ms", "MFU", "tokens/s", "audio s/s"]  # fmt: skip
    return table(
        head,
        [
            [
                row["file"],
                str(row["chips"]),
                row["mesh"],
                f"{row['rows'] / row['chips']:g}",
                f"{row['argument_bytes'] / GIB:.1f} + {row['temporary_bytes'] / GIB:.1f}",
                f"{row['flops'] / 1e12:.1f}",
                f"{row['hbm_bytes'] / 1e9:.0f}",
                *(
                    f"{row[f'{name}_seconds'] * 1e3:.0f}"
                    for name in ("compute", "hbm", "ici", "exposed_ici", "step")
                ),
                f"{row['mfu']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['audio_per_second']:,.0f}",
            ]
            if "flops" in row
            else [row["file"], str(row["chips"]), row["mesh"], row["why"], *[""] * 11]
            for row in rows
        ],
    )


def growth(rows: list[Row]) -> str:
    """Of a training step: what a chip holds, and what it sends, by kind."""
    kinds = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")
    head = ["chips", "mesh", "utterances per chip", "GiB", *(f"{kind} MB" for kind in kinds),
            "interconnect ms", "not hidden ms", "step ms", "MFU", "tokens/s"]  # fmt: skip
    return table(
        head,
        [
            [
                str(row["chips"]),
                row["mesh"],
                f"{row['rows'] / row['chips']:g}",
                f"{row['peak_bytes'] / GIB:.1f}",
                *(
                    f"{sum(c['bytes'] for c in row['collectives'] if c['kind'] == kind) / 1e6:,.0f}"
                    for kind in kinds
                ),
                *(f"{row[f'{name}_seconds'] * 1e3:.0f}" for name in ("ici", "exposed_ici", "step")),
                f"{row['mfu']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
            ]
            for row in rows
        ],
    )


def decode(rows: list[Row]) -> str:
    head = ["run", "strategy", "mesh", "utterances per chip", "GiB", "to the first token ms",
            "a call ms", "tokens/s at 1 per call", "tokens/s at most"]  # fmt: skip
    return table(
        head,
        [
            [
                row["file"],
                row["program"],
                row["mesh"],
                f"{row['rows'] / row['chips']:g}",
                f"{row['peak_bytes'] / GIB:.1f}",
                f"{row['before_seconds'] * 1e3:.1f}",
                f"{row['call_seconds'] * 1e3:.2f}",
                *(f"{x:,.0f}" for x in row["tokens_per_second"]),
            ]
            for row in rows
            if row["fits"]
        ],
    )


def calls(rows: list[Row]) -> str:
    """By file and batch size: the narrowest call against the others."""
    widths = sorted({row["width"] for row in rows})
    head = ["run", "utterances", *(f"{w} wide ms" for w in widths)]
    head += [f"{w} wide / {widths[0]} wide" for w in widths[1:]]
    found = {(row["file"], row["rows"], row["width"]): row["call_seconds"] for row in rows}
    lines = []
    for file, size in dict.fromkeys((row["file"], row["rows"]) for row in rows):
        times = [found[file, size, width] for width in widths]
        ratios = [f"{t / times[0]:.2f}" for t in times[1:]]
        lines.append([file, str(size), *(f"{t * 1e3:.3f}" for t in times), *ratios])
    return table(head, lines)


def models(rows: list[Row]) -> str:
    """Of ``--model``: calls of each width, and the acceptance that wide ones need."""
    widths = sorted({row["width"] for row in rows if "width" in row})
    head = ["run", "utterances", "mesh", "GiB", "to the first token ms"]
    head += [f"{w} wide ms" for w in widths] + [f"{w} wide pays from" for w in widths[1:]]
    batches: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        batches.setdefault((row["file"], row["rows"]), []).append(row)
    lines = []
    for (file, size), group in batches.items():
        if not all(row["fits"] for row in group):
            lines.append([file, str(size), "does not fit", *[""] * (len(head) - 3)])
            continue
        peak, shares = max(row["peak_bytes"] for row in group), [r["acceptance"] for r in group[1:]]
        lines.append(
            [
                *(file, str(size), group[0]["mesh"], f"{peak / GIB:.1f}"),
                f"{group[0]['before_seconds'] * 1e3:.1f}",
                *(f"{row['call_seconds'] * 1e3:.2f}" for row in group),
                *("never" if share is None else f"{share:.2f}" for share in shares),
            ]
        )
    return table(head, lines)


if __name__ == "__main__":
    tables = {"train": train, "growth": growth, "decode": decode, "calls": calls, "models": models}
    print(tables[sys.argv[1]](read(sys.argv[2:])))
