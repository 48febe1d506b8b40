"""The cost of a wide call is measured once for a machine, and changes no text."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.decoding import Auto, Greedy
from mtp_jax.inference import call_cost, pacing
from mtp_jax.inference.call_cost import CallCosts, measure
from mtp_jax.inference.load import load
from tests.recordings import batch_of_folder, noise_folder

ROWS, CALLS = 2, 10
RUNS_BEFORE = pacing.RUNS_BEFORE  # read before the fixture that turns measuring off


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where costs are kept."""
    monkeypatch.setattr(CallCosts, "_file", tmp_path / "costs" / "call_costs.json")
    return CallCosts._file


def timed_by_hand(monkeypatch, wide: float, narrow: float, calls: int = CALLS):
    """A program that takes so many calls of so many seconds, and 3 s before them."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(call_cost.time, "perf_counter", lambda: clock.now)

    def run(batch, strategy):
        steps = calls if np.any(batch >= 0) else 0
        clock.now += 3 + steps * (narrow if np.isinf(strategy.pace.cost) else wide)
        return SimpleNamespace(decoded=SimpleNamespace(loop_steps=1 + steps))

    class Rows(np.ndarray):
        index = property(np.asarray)
        _replace = staticmethod(lambda index: index)

    return measure(run, np.arange(ROWS).view(Rows), Auto())[0]


def test_it_is_the_ratio_of_the_times(monkeypatch):
    assert timed_by_hand(monkeypatch, 0.5, 0.2) == pytest.approx(2.5)
    assert timed_by_hand(monkeypatch, 0.1, 0.2) == 1.0, "a wide call is worth a narrow one at least"
    assert timed_by_hand(monkeypatch, 0.5, 0.2, calls=3) is None, "too short to tell"


def test_costs_are_kept_and_a_broken_file_is_made_anew(file):
    CallCosts().put("a", 2.5)
    CallCosts().put("b", 1.5)
    CallCosts().put("c", 9.0, keep=False)
    assert json.loads(file.read_text()) == {"a": 2.5, "b": 1.5}
    assert [CallCosts().get(key) for key in "abc"] == [2.5, 1.5, None]
    for broken in ("", "[1]", '{"a": "x"}', "\0"):
        file.write_text(broken)
        assert CallCosts().get("a") is None
    CallCosts().put("a", 3.0)
    assert CallCosts().get("a") == 3.0
    file.unlink()
    file.mkdir()  # it cannot be written
    costs = CallCosts()
    costs.put("a", 4.0)
    assert costs.get("a") == 4.0


def test_a_batch_is_measured_once(workdir, tmp_path, file, monkeypatch):
    """And its text is greedy's, before and after."""
    monkeypatch.setattr(pacing, "RUNS_BEFORE", RUNS_BEFORE)
    runner = load(Workdir(workdir))
    batch = batch_of_folder(noise_folder(tmp_path, ROWS, 4000, 8000), ROWS, 8000)
    measured = []

    def noted(*args):
        found = measure(*args)
        measured.append(found[0])
        return found

    monkeypatch.setattr(pacing, "measure", noted)
    greedy = runner.run(batch, Greedy()).decoded
    for run in range(RUNS_BEFORE + 3):
        found = runner.run(batch, Auto()).decoded
        np.testing.assert_array_equal(found.tokens, greedy.tokens)
        assert len(measured) == (run >= RUNS_BEFORE)
    assert file.exists() == (measured[0] is not None)
