"""Recordings on their way through the command's batches: when reading ends, what is compiled."""

from __future__ import annotations

import threading

import numpy as np

import mtp_jax
from mtp_jax.audio.reading import AudioError
from tests.recordings import RATE


def test_closing_ends_reading_within_a_block_though_nobody_speaks(model, monkeypatch):
    blocks, begun, hours = [], threading.Event(), 1000

    def silence(path: str, rate: int, warn):
        for _ in range(hours):
            blocks.append(rate)
            begun.set()
            yield np.zeros(rate, np.int16)

    monkeypatch.setattr("mtp_jax.transcription.transcriber.audio_blocks", silence)
    outcomes = model.transcribe_all([(0, np.zeros(0, np.int16)), (1, "a"), (2, "b")], rate=RATE)
    assert isinstance(next(outcomes)[1], AudioError)
    assert begun.wait(60)
    outcomes.close()
    assert len(blocks) < hours


def test_no_program_is_compiled_for_rows_that_nobody_needs(model, waves, monkeypatch):
    """Five recordings in a batch of four and one of one; three in one of four."""
    rows = []
    run = model.runner.run

    def noted(batch, *args, **options):
        rows.append(len(batch.audio))
        return run(batch, *args, **options)

    monkeypatch.setattr(model.runner, "run", noted)
    monkeypatch.setattr(model, "batch_size", 16)
    monkeypatch.setattr(model, "sizes", (1, 4, 16))
    for count, expected in ((5, [1, 4]), (3, [4]), (1, [1])):
        rows.clear()
        found = model.transcribe([waves[0]] * count, rate=RATE, strategy="ctc")
        assert len({t.text for t in found}) == 1
        assert sorted(rows) == expected


def test_compiling_is_told_once_before_it_begins(workdir, waves):
    model = mtp_jax.load(workdir, batch_size=4)
    told: list[tuple[int, float]] = []

    def compiling(rows: int, seconds: float) -> None:
        assert not model.runner._programs
        told.append((rows, seconds))

    for _ in range(2):
        recordings = enumerate([waves[0]] * 4)
        outcomes = model.transcribe_all(recordings, rate=RATE, strategy="ctc", on_compile=compiling)
        assert len(list(outcomes)) == 4
    assert len(told) == 1
    assert told[0][0] == 4
    assert len(waves[0]) / RATE - 1 < told[0][1] <= model.longest
