"""Evaluation of a set with recordings longer than the longest bucket, and some that cannot be read.

None is passed over in silence: long ones are decoded in chunks, the rest counts as deleted words.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import mtp_jax
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Evaluation
from mtp_jax.decoding import registry
from mtp_jax.evaluation.compare import label, options_of
from mtp_jax.evaluation.evaluate import evaluate
from mtp_jax.inference.load import load
from mtp_jax.inference.runner import Runner
from tests.models import tiny_workdir
from tests.recordings import RATE, sentences

STRATEGIES = ("ctc", "greedy", "threshold", "verify", "verify_ctc", "beam", "prefix_beam")
OPTIONS = Evaluation(batch_sizes=(2,), beams=2, strategies=STRATEGIES)
LOST_WORDS = 4 + 2 + 3


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Workdir]:
    workdir = Workdir(tiny_workdir(tmp_path_factory.mktemp("model")))
    return load(workdir), workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two short recordings, two long ones, and what cannot be decoded."""
    path = tmp_path_factory.mktemp("data")
    waves = sentences(6)
    entries: list[dict[str, Any]] = []

    def add(name: str, text: str, samples: np.ndarray | None) -> None:
        if samples is not None:
            soundfile.write(path / f"{name}.wav", samples, RATE)
        entries.append({"id": name, "audio_filepath": f"{name}.wav", "text": text})

    add("short", "turn it on", waves[0])
    add("long", "turn it on call ann twice stop", np.concatenate(waves[:4]))
    add("missing", "we are not there", None)
    add("hum", "", waves[1])
    add("click", "too short", np.zeros(100, np.int16))
    add("longer", "play it again and again", np.concatenate(waves))
    add("damaged", "cut in half", waves[2])
    whole = (path / "damaged.wav").read_bytes()
    (path / "damaged.wav").write_bytes(whole[: len(whole) // 2])
    (path / "all.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return path


@pytest.fixture(scope="module")
def results(runner: tuple[Runner, Workdir], folder: Path) -> dict[str, Any]:
    data = str(folder / "all.jsonl")
    return evaluate(*runner, data, 0.5, folder / "counted", OPTIONS)


def first_row(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["rows"] if row["strategy"] == name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_long_recording_is_decoded_as_it_is_transcribed(
    name: str, runner: tuple[Runner, Workdir], folder: Path, results: dict[str, Any]
) -> None:
    row = first_row(results, name)
    file = folder / "counted" / "hypotheses" / f"{label(row)}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["short", "long", "longer"]
    strategy = registry.get(name).make(options_of(OPTIONS, 3, 0.5))
    model = mtp_jax.Transcriber(runner[0], batch_size=2)
    # Both at once: recordings share batches, and a text must not depend on its neighbours' width.
    found = model.transcribe([folder / "long.wav", folder / "longer.wav"], strategy=strategy)
    for line, transcript in zip(lines[1:], found, strict=True):
        assert len(transcript.segments) > 1, "it is cut"
        assert line["text"] == transcript.text
        assert line["decoder_calls"] == transcript.decoder_calls
        assert line["tokens"] == len(transcript.tokens)
    assert row["decoder_calls"] == sum(line["decoder_calls"] for line in lines)
    assert row["tokens"] == sum(line["tokens"] for line in lines)


def test_verification_stays_greedy_in_chunks(results: dict[str, Any]) -> None:
    verify = first_row(results, "verify")
    assert verify["identical_to_greedy"] == 1.0
    assert verify["decoder_calls"] <= first_row(results, "greedy")["decoder_calls"]


def test_what_is_left_out_is_said_and_counts_as_deleted(
    runner: tuple[Runner, Workdir],
    folder: Path,
    results: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = {"missing file": 1, "no text": 1, "too short": 1, "unreadable audio": 1}
    data = results["dataset"]
    assert data["left_out"] == reasons
    assert data["left_out_words"] == LOST_WORDS
    assert data["left_out_count_as_deleted"]
    assert (data["utterances"], data["in_chunks"], data["skipped"]) == (3, 2, 4)
    assert json.loads((folder / "counted" / "results.json").read_text())["dataset"] == data

    few = dataclasses.replace(OPTIONS, strategies=("greedy",))
    manifest = str(folder / "all.jsonl")
    kept = evaluate(*runner, manifest, 0.5, folder / "kept", few, count_left_out=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of them are longer than the longest bucket" in said
    assert "Left out: 4 (" in said
    assert all(f"{count} {reason}" in said for reason, count in reasons.items())
    assert f"their {LOST_WORDS} words, as far as they are known, do not count as deleted" in said

    words = kept["dataset"]["words"]
    assert data["words"] == words + LOST_WORDS
    counted, uncounted = (first_row(r, "greedy")["wer"] for r in (results, kept))
    assert counted * (words + LOST_WORDS) == pytest.approx(uncounted * words + 100 * LOST_WORDS)
