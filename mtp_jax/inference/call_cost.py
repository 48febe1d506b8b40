"""What a wide call of the decoder costs on the devices at hand: measured once, and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtp_jax.config import Config
from mtp_jax.data import Batch
from mtp_jax.decoding import Auto
from mtp_jax.decoding.pace import Pace
from mtp_jax.inference.programs import Inference
from mtp_jax.paths import to_path, write_whole

log = logging.getLogger("mtp_jax")

ALWAYS_WIDE, ALWAYS_NARROW = 0.0, float("inf")
FEWEST_CALLS = 8  # a shorter text tells too little
_FILE = "call_costs.json"

Run = Callable[[Batch, Auto], Inference]


def usual(mesh: jax.sharding.Mesh) -> float:
    """The cost where none was measured: of eight rows beside one, on a CPU and elsewhere."""
    return 2.0 if mesh.devices.flat[0].platform == "cpu" else 1.1


def measure(run: Run, batch: Batch, strategy: Auto) -> tuple[float | None, Inference]:
    """Decodes a batch by wide calls alone, by narrow ones alone, and not at all.

    Args:
        run: the compiled program.
        batch: it is decoded twice, and its encoder runs once more.
        strategy: its pace is not looked at.

    Returns:
        The time of a wide call over that of a narrow one, at least 1; None where the texts are too
        short to tell. And the batch, decoded.
    """

    def timed(batch: Batch, cost: float) -> tuple[float, Inference]:
        paced = dataclasses.replace(strategy, pace=Pace.of(cost))
        start = time.perf_counter()
        done = jax.block_until_ready(run(batch, paced))
        return time.perf_counter() - start, done

    nobody = batch._replace(index=np.full_like(batch.index, -1))
    wide, done = timed(batch, ALWAYS_WIDE)
    narrow, other = timed(batch, ALWAYS_NARROW)
    before, _ = timed(nobody, ALWAYS_WIDE)  # the encoder and the prompt
    calls = [int(found.decoded.loop_steps) - 1 for found in (done, other)]
    if min(calls) < FEWEST_CALLS or min(wide, narrow) <= before:
        return None, done
    cost = (wide - before) / calls[0] / ((narrow - before) / calls[1])
    log.info("a call that verifies drafts costs %.1f of one token wide: measured once", cost)
    return max(1.0, cost), done


class CallCosts:
    """Costs by shape of the calls, kept beside JAX's compiled programs where these are kept.

    A file that cannot be read or written costs a measurement, and nothing else.
    """

    def __init__(self) -> None:
        self._known: dict[str, float] | None = None

    def get(self, key: str) -> float | None:
        """The cost that is known; None where it is to be measured."""
        if self._known is None:
            self._known = self._read()
        return self._known.get(key)

    def put(self, key: str, cost: float, *, keep: bool = True) -> None:
        """Notes a cost for this process, or, if `keep`, for later ones too."""
        if not keep:
            self._known = {**(self._known or {}), key: cost}
            return
        self._known = self._read() | {key: cost}
        if file := self._file:
            try:
                write_whole(file, json.dumps(self._known, indent=1).encode())
            except OSError as error:
                log.debug("%s is not kept: %s", file, error)

    @property
    def _file(self) -> Path | None:
        settings: Any = jax.config
        folder = settings.jax_compilation_cache_dir
        return to_path(folder) / _FILE if folder else None

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._file.read_text()) if self._file else {}
            return {str(key): float(cost) for key, cost in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def key_of(config: Config, batch: Batch, strategy: Auto, mesh: jax.sharding.Mesh) -> str:
    """Names all that the cost of a call depends on: devices, sizes, rows and widths."""
    device = mesh.devices.flat[0]
    parts: list[Any] = [
        *(device.device_kind, mesh.size, os.cpu_count(), jax.__version__),
        *(dataclasses.asdict(x) for x in (config.decoder, config.whisper_decoder, config.heads)),
        *(config.train.dtype, config.data.max_tokens, len(batch.index)),
        *(strategy.ctc_width, strategy.min_probability, batch.draft is not None),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
