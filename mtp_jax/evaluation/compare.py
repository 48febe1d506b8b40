"""The comparison of strategies: every strategy run on a data set, one row each."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mtp_jax.config import Evaluation
from mtp_jax.decoding import Greedy, registry
from mtp_jax.evaluation.metrics import ErrorRate, character_errors, word_errors
from mtp_jax.evaluation.outcome import Outcome
from mtp_jax.evaluation.task import Task
from mtp_jax.inference.runner import Runner

Row = dict[str, Any]


def options_of(options: Evaluation, heads: int, tau: float) -> registry.Options:
    """What the strategies of the table are made from."""
    return registry.Options(
        heads=heads,
        tau=tau,
        draft_width=options.draft_width,
        beams=options.beams,
        rounds=options.beam_rounds,
        length_power=options.length_power,
    )


def table_rows(
    options: Evaluation, heads: int, tau: float, usable: Collection[str]
) -> list[tuple[registry.Entry, registry.Variant]]:
    """The strategies of the table, in the order of the registry.

    With M = 1 those that need heads would be greedy again, and those that draft the CTC hypothesis
    need one in the decoder's tokens: both are left out.
    """
    entries = [registry.get(name) for name in usable if name in options.strategies]
    return [
        (entry, variant)
        for entry in entries
        if heads > 1 or not entry.needs_heads
        for variant in entry.variants(options_of(options, heads, tau))
    ]


def compare(
    runner: Runner,
    test: Task,
    tau: float,
    options: Evaluation,
) -> tuple[list[Row], dict[str, Outcome]]:
    """Runs every strategy of `options` at every batch size.

    Returns:
        The rows of the table, and the outcomes, named for files.
    """
    chosen = table_rows(options, runner.model.config.heads.count, tau, runner.strategies)
    rows, outcomes = [], {}
    for size in options.batch_sizes:
        greedy: dict[int, Outcome] = {}

        def at_width(width: int, size: int = size, greedy: dict[int, Outcome] = greedy) -> Outcome:
            if width not in greedy:
                greedy[width] = test.decode(runner, Greedy(width), size)
            return greedy[width]

        for entry, variant in chosen:
            if isinstance(variant.strategy, Greedy):
                outcome = at_width(variant.width)
            else:
                outcome = test.decode(runner, variant.strategy, size)
            like = at_width(1 if entry.name == "greedy" else variant.width)
            made = row(entry.name, variant.shown, outcome, at_width(1), options.normalizer)
            made["identical_to_greedy"] = identical(outcome, like) if entry.calls_decoder else None
            if entry.exact:
                made["differs_from_1_wide_greedy"] = differences(runner, test, outcome, at_width(1))
            rows.append(made)
            outcomes[label(made)] = outcome
    return rows, outcomes


def label(row: Row) -> str:
    """Name of what a row was made of, and of its file below ``hypotheses/``."""
    options = (f"{key}{value}" for key, value in row["options"].items())
    return "_".join([row["strategy"], *options, f"batch{row['batch_size']}"])


def row(
    name: str, options: Mapping[str, Any], outcome: Outcome, greedy: Outcome, normalize: str
) -> Row:
    """One row of the table, from what a strategy and greedy (one token wide) made of the data."""
    references, texts = outcome.references, outcome.texts
    words = word_errors(references, texts, normalize)
    measured = any(words.units)  # else there are no transcripts
    tested, passed = outcome.proposed, outcome.accepted
    speculative = bool(tested.sum())
    calls = outcome.calls
    return {
        "strategy": name,
        "options": dict(options),
        "batch_size": outcome.batch_size,
        "wer": words.percent if measured else None,
        "cer": character_errors(references, texts, normalize).percent if measured else None,
        "decoder_calls": calls,
        "drafter_calls": outcome.drafter_calls,
        "loop_steps": outcome.loop_steps,
        "tokens": outcome.tokens,
        "call_reduction": greedy.calls / calls if calls else None,
        "tokens_per_call": outcome.tokens / calls if calls else None,
        "calls_per_word": calls / sum(words.units) if measured else None,
        "acceptance_by_head": [
            float(a / p) if p else None for p, a in zip(tested, passed, strict=True)
        ]
        if speculative
        else None,
        "identical_to_greedy": identical(outcome, greedy) if calls else None,
        "oracle_wer": oracle_word_error_rates(outcome, normalize) if measured else None,
        "at_length_limit": outcome.at_length_limit,
        "rtfx": outcome.audio_seconds / max(outcome.wall_seconds, 1e-9),
        "compile_seconds": outcome.compile_seconds,
    }


def identical(outcome: Outcome, greedy: Outcome) -> float:
    """Share of utterances whose tokens are all equal."""
    pairs = zip(outcome.hypotheses, greedy.hypotheses, strict=True)
    return float(np.mean([a.tokens == b.tokens for a, b in pairs]))


def differences(
    runner: Runner, task: Task, outcome: Outcome, greedy: Outcome
) -> list[dict[str, Any]]:
    """Where outputs that should be equal are not: utterance, position, and top-2 gap there.

    Of recordings that were decoded in chunks the gap is not known.
    """
    pairs = zip(outcome.hypotheses, greedy.hypotheses, strict=True)
    unequal = {ours.id: (ours.tokens, theirs.tokens) for ours, theirs in pairs}
    unequal = {k: (a, b) for k, (a, b) in unequal.items() if a != b}
    agreed = {key: _agreed(*tokens) for key, tokens in unequal.items()}
    gaps: dict[str, float | None] = {}
    for batch in task.batches(1) if unequal else ():
        if batch.index[0] < 0:  # its audio cannot be read
            continue
        key = task.source.utterances[int(batch.index[0])].id
        if key in agreed:
            gaps[key] = runner.top2_gap(batch, 0, agreed[key])
    in_chunks = [u.id for u in (task.long.utterances if task.long else ()) if u.id in agreed]
    return [
        {"id": key, "position": len(agreed[key]), "top2_gap": gaps.get(key)}
        for key in (*gaps, *in_chunks)
    ]


def _agreed(ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens with which both begin."""
    pairs = zip(ours, theirs, strict=False)
    return tuple(a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs))


def outcome_errors(outcome: Outcome, normalize: str) -> ErrorRate:
    """Word errors of each utterance, also of those that are missing."""
    return word_errors(outcome.references, outcome.texts, normalize)


def oracle_word_error_rates(outcome: Outcome, normalize: str) -> dict[str, float] | None:
    """WER, per cent, of the best of the first 1, 2, 4, 8, ... hypotheses of each utterance."""
    beams = max((len(h.nbest) for h in outcome.hypotheses), default=0)
    if not beams:
        return None
    sizes = [2**i for i in range(beams.bit_length()) if 2**i < beams] + [beams]
    lists = [[a.text for a in h.nbest] or [h.text] for h in outcome.hypotheses]
    lists += [[""] for _ in outcome.missing]
    references = outcome.references
    # Of a shorter list the last hypothesis stands in for those that lack: it changes no minimum.
    by_place = [
        word_errors(references, [texts[min(i, len(texts) - 1)] for texts in lists], normalize)
        for i in range(beams)
    ]
    errors = np.minimum.accumulate([place.errors for place in by_place], axis=0)
    words = max(sum(by_place[0].units), 1)
    return {str(n): 100 * float(errors[n - 1].sum()) / words for n in sizes}
