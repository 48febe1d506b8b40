"""Recordings on their way through the command's batches: when reading ends, what is compiled."""

from __future__ import annotations

import threading

import numpy as np

from mtp_jax.audio.reading import AudioError
from tests.recordings import RATE


def test_closing_ends_reading_within_a_block_though_nobody_speaks(model, monkeypatch):
    blocks, begun, hours = [], threading.Event(), 1000

    def silence(path: str, rate: int):
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
