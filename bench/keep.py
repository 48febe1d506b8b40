"""What a run's evaluation found, in one small file that can be committed: docs/results/*.json.

    python -m bench.keep runs/real/m8_seed0 docs/results/m8_seed0.json

It holds ``results.json`` but for the config, which has paths of its machine, and the word errors of
every utterance for each strategy, which is what intervals are made of. `bench/models.py` reads it
as it reads a workdir.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from absl import app

from mtp_jax.evaluation.compare import label
from mtp_jax.evaluation.metrics import word_errors


def kept(workdir: pathlib.Path) -> dict[str, Any]:
    """``results.json`` of `workdir`, its rows with the ``word_errors`` of every utterance.

    Each is a pair, errors and reference words. Greedy decoding wider than a token is left out: its
    output is that of one-wide decoding.
    """
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    rows = []
    for row in results["rows"]:
        if row["strategy"] == "greedy" and row["options"].get("width", 1) > 1:
            continue
        text = (workdir / "hypotheses" / f"{label(row)}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        found = word_errors(
            [line["reference"] for line in lines],
            [line["text"] for line in lines],
            results["normalizer"],
        )
        rows.append(row | {"word_errors": list(zip(found.errors, found.units, strict=True))})
    del results["config"]
    return results | {"rows": rows}


def read(place: str) -> dict[str, Any]:
    """`kept` of a workdir, or what a file holds of one."""
    path = pathlib.Path(place)
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else kept(path)
    return found


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise app.UsageError("give a workdir, and the file to write")
    output = pathlib.Path(argv[2])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(kept(pathlib.Path(argv[1])), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    sys.exit(app.run(main))
