"""Evaluation of a workdir: tau from dev, every strategy on test, table, pictures, results.json."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np

from mtp_jax.checkpoints.workdir import Workdir, commit, write_json
from mtp_jax.config import Config, Evaluation
from mtp_jax.data import Problem, Report, Source, open_source
from mtp_jax.distributed import multihost
from mtp_jax.evaluation.compare import compare
from mtp_jax.evaluation.metrics import word_errors
from mtp_jax.evaluation.report import (
    beam_table,
    coverage,
    draw,
    table,
    write_hypotheses,
    write_nbest,
)
from mtp_jax.evaluation.task import Task
from mtp_jax.evaluation.tau import CONFIDENCE, choose_tau
from mtp_jax.inference.encoder_cache import with_encoder_cache
from mtp_jax.inference.runner import Runner
from mtp_jax.models.params import count, has_int8
from mtp_jax.pretrained.parts import revisions

log = logging.getLogger("mtp_jax")


def tune(
    runner: Runner,
    workdir: Workdir,
    max_wer_increase: float,
    options: Evaluation | None = None,
    folder: pathlib.Path | None = None,
) -> float:
    """Chooses tau on dev and writes choice and sweep to ``tau.json``.

    Args:
        runner: the model; `workdir`: its folder.
        max_wer_increase: per cent, absolute, by which threshold decoding's WER may exceed greedy's
            on speech like dev's, at a confidence of `tau.CONFIDENCE`.
        options: what will be compared; the config's by default.
        folder: of ``tau.json``; the workdir by default, which makes it the model's own.

    Returns:
        tau; 1, and nothing is decoded or kept, if no row will use it.
    """
    config = runner.model.config
    if not (options or config.evaluation).needs_tau(config.heads.count):
        return 1.0
    rate = config.front_end.sample_rate
    dev = open_source(config.data.dev, config.data, rate, needs_text=True)
    dev = with_encoder_cache(dev, runner)
    e = config.evaluation
    choice = choose_tau(runner, Task.of(dev, runner), e.taus, max_wer_increase, max(e.batch_sizes))
    kept = {
        "tau": choice.tau,
        "max_wer_increase": max_wer_increase,
        "confidence": CONFIDENCE,
        "greedy_wer": choice.greedy_wer,
        "rows": list(choice.sweep),
    }
    if multihost.is_process_zero():
        write_json((folder or workdir.path) / workdir.tau.name, kept)
    if choice.is_safe:
        log.info(
            "tau %g: the fewest calls whose WER is at most greedy's (%.2f %% on dev) + %.2f %%, at"
            " %.0f %% confidence",
            *(choice.tau, choice.greedy_wer, max_wer_increase, 100 * CONFIDENCE),
        )
    else:
        log.warning(
            "no tau is safe: the %d utterances of dev cannot show at %.0f %% confidence that the"
            " WER rises by at most %.2f %% (at best %.2f %%), so threshold decodes as greedy does:"
            " use verify, or a larger dev set or --max_wer_increase",
            *(len(dev.utterances), 100 * CONFIDENCE, max_wer_increase),
            min((row["wer_increase_limit"] for row in choice.sweep), default=float("inf")),
        )
    return choice.tau


def evaluate(
    runner: Runner,
    workdir: Workdir,
    data: str,
    tau: float,
    output: pathlib.Path,
    options: Evaluation | None = None,
    count_left_out: bool = True,
) -> dict[str, Any]:
    """Compares strategies on `data`, prints the table and writes the rest.

    Args:
        runner: the model.
        workdir: whose sweep of tau goes into the picture.
        data: a source, as in `config.Data`.
        tau: of threshold decoding.
        output: folder of ``results.json``, pictures, hypotheses and n-best lists.
        options: what is compared; the config's by default.
        count_left_out: whether words of what cannot be decoded count as deleted.

    Returns:
        What ``results.json`` holds.
    """
    config = runner.model.config
    source = open_source(data, config.data, config.front_end.sample_rate, math.inf)
    source = _with_references(source)
    options = options or config.evaluation
    task = Task.of(source, runner, count_left_out)
    rows, outcomes = compare(runner, task, tau, options)
    decoded = next(iter(outcomes.values()))
    left_out = task.left_out(decoded)
    if left_out:
        log.warning("left out: %s", "; ".join(map(_described, left_out)))
    ids = {h.id for h in decoded.hypotheses}
    utterances = [u for u in task.utterances if u.id in ids]
    long = {u.id for u in task.long.utterances} if task.long else set()

    def words(texts: list[str]) -> int:
        return sum(word_errors(texts, texts, config.evaluation.normalizer).units)

    results = {
        "commit": commit(),
        "config": dataclasses.asdict(config),
        "revisions": revisions(config.pretrained),  # on the Hub; the rest is in the config
        "seed": config.seed,
        "parameters": count(runner.params),
        "heads": {"kind": config.heads.kind, "M": config.heads.count},
        "draft_model": runner.drafter.name if runner.drafter else None,
        "device": _device(runner.mesh),
        "dtype": config.train.dtype,
        "weights": "int8" if has_int8(runner.params) else config.train.dtype,
        "normalizer": config.evaluation.normalizer,
        "dataset": {
            "name": source.name,
            "split": source.split,
            "utterances": len(utterances),
            "words": words(decoded.references),
            "audio_seconds": sum(u.seconds for u in utterances),
            "in_chunks": len(long & ids),
            "left_out": Report(source.title, len(utterances), left_out).counts(),
            "left_out_words": words([p.text for p in left_out]),
            "left_out_count_as_deleted": count_left_out,
            "skipped": len(left_out),
        },
        "rows": rows,
        "tau_sweep": Workdir(output).read_tau() or workdir.read_tau(),
    }
    if not multihost.is_process_zero():
        return results
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    write_hypotheses(output / "hypotheses", outcomes)
    write_nbest(output / "nbest", outcomes, runner.tokenizer.pieces)
    pictures = draw(results, output)
    _print(results, config, [output / "results.json", *pictures])
    return results


def _with_references(source: Source) -> Source:
    """`source` less utterances without a transcript, unless none has one."""
    told = np.array([bool(utterance.text.strip()) for utterance in source.utterances])
    if told.all():
        return source
    if not told.any():
        log.warning("%s has no transcripts, so that its WER is not measured", source.title)
        return source
    untold = [source.utterances[i].id for i in np.flatnonzero(~told).tolist()]
    return source.subset(np.flatnonzero(told).tolist(), (Problem(i, "no text") for i in untold))


def _described(problem: Problem) -> str:
    return f"{problem.id} ({problem.reason}{problem.detail and ': ' + problem.detail})"


def _device(mesh: jax.sharding.Mesh) -> str:
    kinds = {device.device_kind for device in mesh.devices.flat}
    return f"{mesh.size} x {', '.join(sorted(kinds))}"


def _print(results: dict[str, Any], config: Config, files: list[pathlib.Path]) -> None:
    d = results["dataset"]
    print(
        f"\n{d['name']} {d['split']}: {d['utterances']} utterances, {d['words']} words,"
        f" {d['audio_seconds']:.0f} s; {results['parameters'] / 1e6:.2f} M parameters,"
        f" M = {config.heads.count} {config.heads.kind} heads; {results['device']}\n"
    )
    print(table(results["rows"], d["utterances"]))
    for line in coverage(d):
        print(line)
    if beams := beam_table(results["rows"], d["utterances"]):
        print(f"\n{beams}")
    print(
        "\nFewer calls is against greedy, one token wide; RTFx is audio seconds a second of wall"
        " clock,\ncompilation apart. On a CPU a call that is M tokens wide costs more than one that"
        " is 1 wide,\nso wall clock need not follow the calls."
    )
    print(f"written: {', '.join(str(f) for f in files)}")
