"""What must be the same in every run of the same training command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import tensorstore

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.evaluation.scalars import read_scalars

_MAY_DIFFER = ("rtfx", "compile_seconds", "commit", "cache_dir")


def chunks(checkpoint: Path) -> dict[str, str]:
    """Digests of all that an Orbax checkpoint holds, by key."""
    spec = {"driver": "ocdbt", "base": f"file://{checkpoint}/"}
    store = tensorstore.KvStore.open(spec).result()
    keys = store.list().result()
    return {k.decode(): hashlib.sha256(store.read(k).result().value).hexdigest() for k in keys}


def bits(workdir: Path) -> dict[str, Any]:
    """What is the same in every run of the same command.

    Raises:
        AssertionError: a file of a save that did not end is left.
    """
    left = [str(f) for f in workdir.rglob("*") if "tmp" in f.name or f.name.startswith(".partial")]
    assert not left, left
    last = max(int(f.name) for f in (workdir / "checkpoints").iterdir())
    found: dict[str, Any] = {"last": [last, chunks(workdir / "checkpoints" / str(last) / "state")]}
    for best in (workdir / "best").iterdir():
        found[f"best {best.name}"] = chunks(best / "params")
        found[f"best {best.name} WER"] = json.loads((best / "metrics" / "metrics").read_text())
    for name in ("dev", "results", "data_report", "config"):
        found[name] = _without_times(json.loads((workdir / f"{name}.json").read_text()))
    for file in [workdir / "tokenizer.model", *sorted((workdir / "hypotheses").iterdir())]:
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name, values in read_scalars(Workdir(workdir)).items():
        if not name.endswith("_per_second"):
            found[f"scalar {name}"] = sorted(values.items())
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _MAY_DIFFER}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def differences(workdir: Path, whole: dict[str, Any]) -> str:
    """Names of what is not as in the undisturbed run; empty if all is."""
    try:
        found = bits(workdir)
    except (AssertionError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    names = {*found, *whole}
    return ", ".join(sorted(n for n in names if found.get(n) != whole.get(n)))
