"""The comparison and its report, over outcomes made up here: no model runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mtp_jax.config import Config, Evaluation, Heads
from mtp_jax.data import Batch, Source, Utterance
from mtp_jax.decoding import (
    BeamSearch,
    CtcGreedy,
    Greedy,
    PrefixBeam,
    Strategy,
    Threshold,
    Verify,
    registry,
)
from mtp_jax.evaluation.compare import (
    Row,
    compare,
    differences,
    identical,
    outcome_errors,
    row,
    table_rows,
)
from mtp_jax.evaluation.evaluate import _with_references
from mtp_jax.evaluation.outcome import Alternative, Hypothesis, Outcome
from mtp_jax.evaluation.report import beam_table, draw, table, write_hypotheses, write_nbest
from mtp_jax.evaluation.task import Task
from mtp_jax.evaluation.tau import NO_TAU, choose_tau
from mtp_jax.inference.runner import Runner

REFERENCES = ("turn it on", "call ann twice", "stop")
M = 3


def outcome(
    texts: tuple[str, ...] = REFERENCES,
    calls: tuple[int, ...] = (4, 4, 2),
    tokens: tuple[tuple[int, ...], ...] = ((5, 6, 7, 2), (5, 8, 9, 2), (4, 2)),
    proposed: tuple[int, int] = (0, 0),
    accepted: tuple[int, int] = (0, 0),
) -> Outcome:
    hypotheses = [
        Hypothesis(id=f"u{i}", reference=reference, text=text, tokens=ids, calls=n)
        for i, (reference, text, ids, n) in enumerate(
            zip(REFERENCES, texts, tokens, calls, strict=True)
        )
    ]
    return Outcome(
        hypotheses=tuple(hypotheses),
        proposed=np.array(proposed),
        accepted=np.array(accepted),
        loop_steps=max(calls),
        at_length_limit=0,
        audio_seconds=6.0,
        wall_seconds=0.5,
        compile_seconds=2.5,
        batch_size=4,
    )


GREEDY = outcome()


class Fake:
    """A recogniser that answers from a function of the strategy, and counts its runs."""

    def __init__(self, answer: Callable[[Strategy], Outcome], heads: int = M) -> None:
        self.answer = answer
        self.model = SimpleNamespace(
            config=Config(heads=Heads(count=heads)),
        )
        self.strategies = registry.usable(has_ctc_hypothesis=True)
        self.ran: list[Strategy] = []

    def decode(self, source: Source, batches: Any, strategy: Strategy) -> Outcome:
        self.ran.append(strategy)
        size = {len(batch.index) for batch in batches}.pop()
        return dataclasses.replace(self.answer(strategy), batch_size=size)

    def top2_gap(self, batch: Batch, at: int, tokens: tuple[int, ...]) -> float:
        return 0.001 * int(batch.index[at]) + len(tokens)


@pytest.fixture(autouse=True)
def answers_instead_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_source(runner: Any, *task: Any) -> Outcome:
        made: Outcome = runner.decode(*task)
        return made

    monkeypatch.setattr("mtp_jax.evaluation.task.decode_source", decode_source)


def runner(answer: Callable[[Strategy], Outcome], heads: int = M) -> Runner:
    return cast(Runner, Fake(answer, heads))


def task() -> Task:
    """The three utterances, shortest first, as `eval_batches` has them."""
    utterances = [Utterance(f"u{i}", text, 2.0) for i, text in enumerate(REFERENCES)]
    source = Source("toy", "test", utterances, [], lambda i: np.zeros(1, np.int16))

    def batches(size: int) -> Iterator[Batch]:
        for index in (2, 0, 1):
            empty = np.zeros((1, 0), np.int32)
            one = np.ones(1, np.int32)
            yield Batch(empty, one, empty, one, np.array([index, *[-1] * (size - 1)]))

    return Task(source, batches)


# rows


def test_a_row_of_verification() -> None:
    ours = outcome(
        texts=("turn it on", "call an twice", "stop"),
        calls=(2, 2, 1),
        proposed=(4, 3),
        accepted=(3, 0),
    )
    made = row("verify", {}, ours, GREEDY, "none")
    assert made == {
        "strategy": "verify",
        "options": {},
        "batch_size": 4,
        "wer": pytest.approx(100 / 7),
        "cer": pytest.approx(100 / 28),
        "decoder_calls": 5,
        "drafter_calls": 0,
        "loop_steps": 2,
        "tokens": 10,
        "call_reduction": 2.0,
        "tokens_per_call": 2.0,
        "calls_per_word": pytest.approx(5 / 7),
        "acceptance_by_head": [0.75, 0.0],
        "identical_to_greedy": 1.0,
        "oracle_wer": None,
        "at_length_limit": 0,
        "rtfx": 12.0,
        "compile_seconds": 2.5,
    }
    json.dumps(made, allow_nan=False)


def test_without_transcripts_there_are_calls_and_no_wer(tmp_path: pathlib.Path) -> None:
    def untold(made: Outcome) -> Outcome:
        bare = [dataclasses.replace(h, reference="") for h in made.hypotheses]
        return dataclasses.replace(made, hypotheses=tuple(bare))

    greedy, faster = untold(outcome()), untold(outcome(calls=(2, 2, 1)))
    made = [
        row(name, {}, x, greedy, "english") for name, x in (("greedy", greedy), ("verify", faster))
    ]
    assert [(r["wer"], r["cer"], r["calls_per_word"]) for r in made] == [(None,) * 3] * 2
    assert made[1]["call_reduction"] == 2
    assert "| verify   | 4     | -     | -     | 1.67      | 2.00x" in table(made, 3)
    results = {"rows": made, "dataset": {"split": ""}, "tau_sweep": None}
    assert all(file.stat().st_size for file in draw(results, tmp_path))


def test_where_some_have_transcripts_only_those_are_compared() -> None:
    def source(*texts: str) -> Source:
        utterances = [Utterance(f"u{i}", text, 1.0) for i, text in enumerate(texts)]
        return Source("s", "", utterances, [], lambda i: np.full(3, i, np.int16))

    mixed = _with_references(source("", "said", " ", "too"))
    assert [u.text for u in mixed.utterances] == ["said", "too"]
    assert [(p.id, p.reason) for p in mixed.problems] == [("u0", "no text"), ("u2", "no text")]
    assert mixed.waveform(1)[0] == 3
    for texts in (("a", "b"), ("", " ")):
        assert [u.text for u in _with_references(source(*texts)).utterances] == list(texts)


def test_a_head_that_was_never_tested_has_no_acceptance() -> None:
    ours = outcome(proposed=(4, 0), accepted=(0, 0))
    assert row("verify", {}, ours, GREEDY, "none")["acceptance_by_head"] == [0.0, None]
    assert row("greedy", {}, GREEDY, GREEDY, "none")["acceptance_by_head"] is None


def test_ctc_makes_no_calls_and_is_compared_to_nothing() -> None:
    made = row("ctc", {}, outcome(calls=(0, 0, 0)), GREEDY, "none")
    assert made["decoder_calls"] == 0
    nothing = ("call_reduction", "tokens_per_call", "identical_to_greedy", "acceptance_by_head")
    assert [made[key] for key in nothing] == [None] * 4


def test_identical_counts_utterances() -> None:
    other = outcome(tokens=((5, 6, 7, 2), (5, 8, 2), (4, 2)))
    assert identical(GREEDY, GREEDY) == 1.0
    assert identical(other, GREEDY) == pytest.approx(2 / 3)


def test_word_errors_are_normalized() -> None:
    errors = outcome_errors(outcome(texts=("Turn it on!", "call ann twice", "stop")), "english")
    assert errors.percent == 0


# tau


def threshold_answers(answers: dict[float, Outcome]) -> Callable[[Strategy], Outcome]:
    """A runner's answer: that of tau for threshold decoding, greedy's for all else."""
    return lambda s: answers[round(float(s.tau), 3)] if isinstance(s, Threshold) else GREEDY


def test_tau_has_the_fewest_calls_among_those_good_enough() -> None:
    """tau 0.3 is the fastest but errs; 0.5 and 0.7 are as good as greedy, 0.5 faster."""
    answers = {
        0.3: outcome(texts=("turn it of", "call ann twice", "stop"), calls=(1, 1, 1)),
        0.5: outcome(calls=(2, 1, 1)),
        0.7: outcome(calls=(2, 2, 1)),
        0.9: outcome(calls=(4, 4, 2)),
    }
    model = runner(threshold_answers(answers))
    # Of no error in 7 words 3 in 7 may be left, of one that was seen 4.7: 43 % and 68 %.
    choice = choose_tau(model, task(), (0.9, 0.3, 0.7, 0.5), 50.0, 4)
    assert choice.tau == 0.5
    assert choice.is_safe
    assert choice.greedy_wer == 0.0
    assert [r["options"]["tau"] for r in choice.sweep] == [0.3, 0.5, 0.7, 0.9]
    assert [r["decoder_calls"] for r in choice.sweep] == [3, 4, 5, 10]
    assert {r["strategy"] for r in choice.sweep} == {"threshold"}
    limits = [r["wer_increase_limit"] for r in choice.sweep]
    assert limits == [pytest.approx(x, abs=0.5) for x in (68, 43, 43, 43)]

    assert choose_tau(model, task(), (0.3, 0.5), 70.0, 4).tau == 0.3
    assert choose_tau(model, task(), (0.3, 0.5), 60.0, 4).tau == 0.5


def test_of_equal_calls_the_lower_tau_is_taken() -> None:
    found = choose_tau(runner(lambda _: GREEDY), task(), (0.9, 0.5), 100.0, 4)
    assert found.tau == 0.5


def test_without_a_good_tau_there_is_one_that_makes_it_greedy() -> None:
    choice = choose_tau(runner(lambda _: GREEDY), task(), (0.5,), 1.0, 4)
    assert choice.tau == NO_TAU > 1
    assert not choice.is_safe
    assert len(choice.sweep) == 1


# compare


def rows_of(options: Evaluation, heads: int, has_ctc: bool = True) -> list[Any]:
    return [
        (entry.name, dict(variant.shown), variant.strategy)
        for entry, variant in table_rows(options, heads, 0.9, registry.usable(has_ctc))
    ]


def test_the_rows_of_the_table() -> None:
    options = Evaluation(strategies=("verify", "ctc", "greedy", "threshold"))
    assert rows_of(options, 8) == [
        ("ctc", {}, CtcGreedy()),
        ("greedy", {"width": 1}, Greedy(1)),
        ("greedy", {"width": 8}, Greedy(8)),
        ("threshold", {"tau": 0.9}, Threshold(0.9)),
        ("verify", {}, Verify()),
    ]
    assert [name for name, *_ in rows_of(options, 1)] == ["ctc", "greedy"]
    options = Evaluation(strategies=("verify", "verify_ctc"), draft_width=5)
    drafted = ("verify_ctc", {"width": 5}, Verify(5))
    assert rows_of(options, 1) == [drafted]
    assert rows_of(options, 8) == [("verify", {}, Verify()), drafted]
    assert rows_of(options, 8, has_ctc=False) == [("verify", {}, Verify())]
    assert Evaluation().needs_tau(8)
    assert not Evaluation().needs_tau(1)
    assert not Evaluation(strategies=("greedy", "verify")).needs_tau(8)
    searches = ("beam", "prefix_beam", "prefix_beam_ctc")
    options = Evaluation(strategies=searches, beams=6, draft_width=5, beam_rounds=2)
    ours = PrefixBeam(6, 0.0, 5, 2)
    rows = [
        ("beam", {"beams": 6}, BeamSearch(6, 0.0)),
        ("prefix_beam", {"beams": 6}, ours),
        ("prefix_beam_ctc", {"beams": 6}, ours.replace(ctc_width=5)),
    ]
    assert rows_of(options, 1) == rows_of(options, 4) == rows
    assert rows_of(options, 4, has_ctc=False) == rows[:2]


def test_compare_runs_each_strategy_once_a_batch_size() -> None:
    wide = outcome(tokens=((5, 6, 7, 2), (5, 8, 8, 2), (4, 2)))  # rounding made one differ

    def answer(strategy: Strategy) -> Outcome:
        if isinstance(strategy, CtcGreedy):
            return outcome(calls=(0, 0, 0))
        if isinstance(strategy, Greedy):
            return wide if strategy.width in (M, 16) else GREEDY
        if isinstance(strategy, Verify):
            return outcome(calls=(2, 2, 1), tokens=tuple(h.tokens for h in wide.hypotheses))
        return outcome(calls=(1, 2, 2))

    model = runner(answer)
    rows, outcomes = compare(model, task(), 0.9, Evaluation(batch_sizes=(1, 4)))
    assert len(cast(Fake, model).ran) == 2 * 7  # greedy of width 16 too
    names = ["ctc", "greedy", "greedy", "threshold", "verify", "verify_ctc"]
    assert [r["strategy"] for r in rows] == 2 * names
    ctc, narrow, wide_row, threshold, verify, drafted = rows[:6]
    assert ctc["identical_to_greedy"] is None
    assert narrow["identical_to_greedy"] == 1.0
    assert wide_row["identical_to_greedy"] == pytest.approx(2 / 3)
    assert verify["identical_to_greedy"] == 1.0  # to greedy of its own width
    assert drafted["identical_to_greedy"] == 1.0
    assert drafted["options"] == {"width": 16}
    assert threshold["identical_to_greedy"] == pytest.approx(2 / 3)
    assert verify["call_reduction"] == 2.0
    # Where they part, every difference is shown with the gap between the two best tokens.
    parted = [{"id": "u1", "position": 2, "top2_gap": pytest.approx(2.001)}]
    assert verify["differs_from_1_wide_greedy"] == parted
    assert wide_row["differs_from_1_wide_greedy"] == parted
    assert narrow["differs_from_1_wide_greedy"] == []
    assert "differs_from_1_wide_greedy" not in threshold
    assert len(outcomes) == len(rows)
    assert {
        "ctc_batch1",
        "greedy_width3_batch4",
        "threshold_tau0.9_batch4",
        "verify_batch1",
        "verify_ctc_width16_batch4",
    } <= set(outcomes)
    json.dumps(rows, allow_nan=False)


def test_differences_at_the_end_of_the_shorter_text() -> None:
    shorter = outcome(tokens=((5, 6), (5, 8, 9, 2), (4, 2)))
    found = differences(runner(lambda _: GREEDY), task(), shorter, GREEDY)
    assert found == [{"id": "u0", "position": 2, "top2_gap": pytest.approx(2.0)}]


def test_a_recording_that_cannot_be_read_differs_from_nothing() -> None:
    """It is a row of filler, whose index is not that of the last utterance."""
    shorter = outcome(tokens=((5, 6, 2), (5, 8, 9, 2), (4, 4, 2)))
    whole = task()
    batches = list(whole.batches(1))
    unread = batches[1]._replace(index=np.array([-1], np.int32))
    some = dataclasses.replace(whole, batches=lambda _: iter([batches[0], unread, batches[2]]))
    found = differences(runner(lambda _: GREEDY), some, shorter, GREEDY)
    assert [one["id"] for one in found] == ["u2"]


# report


def rows_to_show() -> list[Row]:
    verify = outcome(calls=(2, 2, 1), proposed=(4, 0), accepted=(3, 0))
    return [
        row("ctc", {}, outcome(calls=(0, 0, 0)), GREEDY, "none"),
        row("greedy", {"width": 1}, GREEDY, GREEDY, "none"),
        row("threshold", {"tau": 0.95}, outcome(calls=(2, 2, 2)), GREEDY, "none"),
        row("verify", {}, verify, GREEDY, "none"),
    ]


def test_the_table_shows_what_there_is_none_of_as_a_dash() -> None:
    lines = table(rows_to_show(), utterances=3).splitlines()
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, rule, ctc, greedy, threshold, verify = cells
    assert all(set(cell) == {"-"} for cell in rule)
    assert dict(zip(head, ctc, strict=True)) == {
        "strategy": "ctc",
        "batch": "4",
        "WER %": "0.00",
        "CER %": "0.00",
        "calls/utt": "0.00",
        "fewer calls": "-",
        "tokens/call": "-",
        "= greedy %": "-",
        "accepted, heads 2..M, %": "-",
        "RTFx": "12",
        "compile s": "2.50",
    }
    assert greedy[0] == "greedy (width 1)"
    assert threshold[0] == "threshold (tau 0.95)"
    shown = dict(zip(head, verify, strict=True))
    assert shown["accepted, heads 2..M, %"] == "75 -"
    assert shown["fewer calls"] == "2.00x"
    assert shown["= greedy %"] == "100.00"
    assert shown["calls/utt"] == "1.67"


def test_hypotheses_are_written_line_by_line(tmp_path: pathlib.Path) -> None:
    write_hypotheses(tmp_path / "hypotheses", {"greedy_width1_batch4": GREEDY})
    lines = (tmp_path / "hypotheses" / "greedy_width1_batch4.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "id": "u1",
        "reference": "call ann twice",
        "text": "call ann twice",
        "tokens": 4,
        "decoder_calls": 4,
    }
    assert len(lines) == 3


def listed(*lists: tuple[str, ...], calls: int) -> Outcome:
    """An outcome with these texts, the best first, for each reference."""
    hypotheses = [
        dataclasses.replace(
            h,
            text=texts[0],
            calls=calls,
            nbest=tuple(
                Alternative(text, -1.0 - i, (5, 2), (0.5, 0.25)) for i, text in enumerate(texts)
            ),
        )
        for h, texts in zip(GREEDY.hypotheses, lists, strict=True)
    ]
    return dataclasses.replace(GREEDY, hypotheses=tuple(hypotheses))


LISTED = (("turn on", "turn it on", "on"), ("call", "call an twice", "call ann twice"), ("stop",))


def test_the_oracle_takes_the_best_of_the_first() -> None:
    made = row("prefix_beam", {"beams": 3}, listed(*LISTED, calls=4), GREEDY, "none")
    errors = {"1": 1 + 2 + 0, "2": 0 + 1 + 0, "3": 0}
    assert made["oracle_wer"] == {n: pytest.approx(100 * e / 7) for n, e in errors.items()}
    assert row("greedy", {}, GREEDY, GREEDY, "none")["oracle_wer"] is None


def test_the_table_of_beams_compares_with_beam_search() -> None:
    rows = [
        row("beam", {"beams": 3}, listed(*LISTED, calls=6), GREEDY, "none"),
        row("prefix_beam", {"beams": 3}, listed(*LISTED, calls=2), GREEDY, "none"),
        *rows_to_show(),
    ]
    lines = beam_table(rows, utterances=3).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[:4] for line in cells[2:]] == [
        ["beam", "4", "6.00", "1.00x"],
        ["prefix_beam", "4", "2.00", "3.00x"],
    ]
    assert cells[0][-1] == "best of 3, WER %"
    assert cells[3][-1] == "0.00"
    assert "| prefix_beam | 4     | 2.00      | -  " in beam_table(rows[1:], utterances=3)
    assert not beam_table(rows_to_show(), utterances=3)


def test_lists_are_written_with_the_confidence_of_each_token(tmp_path: pathlib.Path) -> None:
    outcomes = {"prefix_beam_beams3": listed(*LISTED, calls=4), "greedy": GREEDY}
    write_nbest(tmp_path / "nbest", outcomes, ["", "", "</s>", "", "", "▁turn"])
    assert [file.name for file in (tmp_path / "nbest").iterdir()] == ["prefix_beam_beams3.jsonl"]
    lines = (tmp_path / "nbest" / "prefix_beam_beams3.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["id"], first["reference"]) == ("u0", "turn it on")
    assert [h["text"] for h in first["hypotheses"]] == list(LISTED[0])
    assert first["hypotheses"][1]["score"] == -2.0
    assert first["hypotheses"][0]["tokens"] == [["▁turn", 0.5], ["</s>", 0.25]]


@pytest.mark.parametrize("swept", [True, False])
def test_pictures_are_drawn(tmp_path: pathlib.Path, swept: bool) -> None:
    results: dict[str, Any] = {"rows": rows_to_show(), "dataset": {"split": "test"}}
    results["tau_sweep"] = {"rows": rows_to_show()[2:3], "greedy_wer": 1.0} if swept else None
    files = draw(results, tmp_path)
    assert [file.name for file in files] == ["wer_against_calls.png", "acceptance_by_head.png"]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)
