"""Compares the decoding strategies of a recogniser on any data.

    python -m mtp_jax.evaluate --model=DIR [--data=SOURCE] [--strategy=verify,greedy]
        [--tau=0.9 | --max_wer_increase=0.5] [--batch_size=1,16] [--output=DIR]
    python -m mtp_jax.evaluate --model=DIR --strategy=beam,prefix_beam [--beams=16]
        [--beam_rounds=3] [--draft_width=16] [--length_power=0]

DIR is a workdir, an exported model or a Whisper (``hf://OWNER/NAME`` too); --workdir means the
same. SOURCE is a manifest, a LibriSpeech folder, ``parquet:FOLDER`` or another of `config.Data`;
several are joined by ``+``.

Threshold decoding uses the tau that training chose on dev, unless --tau gives one. It is chosen
anew, on dev, with --max_wer_increase, and where none was kept: the one with the fewest calls whose
WER on speech like dev's is at most that much (per cent, absolute) above greedy's, at 95 %
confidence; 2, which is greedy, where dev shows that of none. Beam searches come with n-best lists,
below ``nbest/`` of the output, and the WER of the best of 1, 2, 4, ... hypotheses.

Recordings longer than the longest bucket are decoded in chunks, as `transcribe` does. What cannot
be decoded is counted beside the table, and its words as deleted, unless --nocount_left_out.

Results go to ``evaluations/SOURCE`` of the workdir (of a Whisper, to ``evaluations/NAME/SOURCE``
in the current folder), or to --output. Nothing of the model changes, unless --save_tau asks for it:
then transcribe and serve use the tau that was chosen.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import dataclasses
import sys
from typing import Any

from absl import flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir, write_json
from mtp_jax.config import ConfigError, Evaluation
from mtp_jax.decoding import registry
from mtp_jax.flag_checks import check_tau, mesh_of
from mtp_jax.paths import check_writable, to_path

_MODEL = cli.model_flag()
_PRETRAINED = cli.pretrained_flag()
_SILENCE = cli.silence_flag()
_DTYPE = cli.dtype_flag()
_WEIGHTS = cli.weights_flag()
_HEADS = cli.heads_flag()
_DRAFT_MODEL = cli.draft_model_flag()
_MESH = cli.mesh_flag()
_DATA = flags.DEFINE_string("data", None, "source to decode; default: the config's test")
_STRATEGY = flags.DEFINE_list(
    "strategy", None, f"of {', '.join(registry.names())}; default: the config's"
)
_TAU = flags.DEFINE_float("tau", None, "of threshold decoding; default: the one chosen on dev")
_INCREASE = flags.DEFINE_float(
    "max_wer_increase", None, "choose tau on dev: per cent of WER that may be lost, absolute"
)
_BATCH_SIZE = flags.DEFINE_list("batch_size", None, "one or several; default: the config's")
_BEAMS = flags.DEFINE_integer("beams", None, "hypotheses of a beam search; default: the config's")
_ROUNDS = flags.DEFINE_integer("beam_rounds", None, "of prefix beams; default: the config's")
_WIDTH = flags.DEFINE_integer(
    "draft_width", None, "tokens a call is wide where a text is drafted; default: the config's"
)
_LENGTH_POWER = flags.DEFINE_float("length_power", None, "of beam searches; default: the config's")
_NORMALIZER = flags.DEFINE_string(
    "normalizer", None, "of texts: english, basic (other languages) or none; default: the config's"
)
_SAVE_TAU = flags.DEFINE_bool("save_tau", False, "keep a tau chosen anew as the model's own")
_COUNT_LEFT_OUT = flags.DEFINE_bool(
    "count_left_out", True, "count words of what cannot be decoded as deleted"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "folder for the results; default: evaluations/SOURCE of the workdir"
)


# Flags that stand in for a field of `config.Evaluation`, which checks them.
_FIELDS = {
    "strategies": _STRATEGY,
    "beams": _BEAMS,
    "beam_rounds": _ROUNDS,
    "draft_width": _WIDTH,
    "length_power": _LENGTH_POWER,
    "normalizer": _NORMALIZER,
}


def given_options() -> dict[str, Any]:
    """Fields of `config.Evaluation` that flags give.

    Raises:
        flags.Error: one has a value that its field cannot have.
    """
    for size in _BATCH_SIZE.value or ():
        if not (size.isdigit() and int(size) > 0):
            raise flags.Error(f"--batch_size={size} must be a positive number")
    given: dict[str, Any] = {
        field: tuple(flag.value) if isinstance(flag.value, list) else flag.value
        for field, flag in _FIELDS.items()
        if flag.present
    }
    for field, value in given.items():
        try:
            Evaluation(**{field: value})
        except ConfigError as error:
            flag = f"--{_FIELDS[field].name}"
            flag += "" if isinstance(value, tuple) else f"={value}"
            said = str(error).replace(f"config.evaluation.{field}", flag)
            raise flags.Error(said) from None
    if _BATCH_SIZE.value:
        given["batch_sizes"] = tuple(int(size) for size in _BATCH_SIZE.value)
    return given


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    given = given_options()
    if _TAU.value is not None and _INCREASE.value is not None:
        raise flags.Error("--tau and --max_wer_increase exclude each other: give one")
    check_tau(_TAU.value)
    mesh = mesh_of(_MESH.value)
    from mtp_jax.inference.model_folder import open_model_folder

    workdir = open_model_folder(_MODEL.value)
    config = workdir.read_config()
    data = _DATA.value or config.data.test
    output = to_path(_OUTPUT.value) if _OUTPUT.value else workdir.evaluation(data)
    check_writable(output, "output")
    options = dataclasses.replace(config.evaluation, **given)
    if _DRAFT_MODEL.value and not _STRATEGY.value:  # what drafts by it, beside the config's
        drafting = registry.names(lambda entry: entry.drafts_text and entry.exact)
        strategies = tuple(dict.fromkeys([*options.strategies, *drafting]))
        options = dataclasses.replace(options, strategies=strategies)
    tunes = (
        options.needs_tau(_HEADS.value or config.heads.count)
        and _TAU.value is None
        and (_INCREASE.value is not None or not workdir.read_tau())
    )
    if tunes and _SAVE_TAU.value:
        check_writable(workdir.path, "workdir")
    from mtp_jax.data import check_sources

    check_sources([data, *([config.data.dev] if tunes else [])], config.data)
    cli.start_jax(config)
    from mtp_jax.decoding import DraftsError
    from mtp_jax.evaluation import evaluate  # imported late: errors in flags come at once
    from mtp_jax.evaluation.compare import table_rows
    from mtp_jax.inference.load import load

    runner = load(
        workdir,
        cli.lay_out(mesh),
        pretrained=_PRETRAINED.value,
        silence=_SILENCE.value,
        dtype=_DTYPE.value,
        heads=_HEADS.value,
        draft_model=_DRAFT_MODEL.value or "",
        weights=_WEIGHTS.value,
    )
    if not {*(_STRATEGY.value or ())} <= {*runner.strategies}:
        raise DraftsError
    if not table_rows(options, runner.model.config.heads.count, 1.0, runner.strategies):
        raise flags.Error(
            f"{', '.join(options.strategies)} need several heads, and {workdir.path} has one:"
            " add greedy"
        )
    increase = _INCREASE.value
    if _TAU.value is not None:
        tau = _TAU.value
    elif increase is None and (kept := workdir.read_tau()):
        tau = kept["tau"]
    else:
        allowed = config.evaluation.max_wer_increase if increase is None else increase
        tau = evaluate.tune(runner, workdir, allowed, options, output)
        if _SAVE_TAU.value and (chosen := Workdir(output).read_tau()):
            write_json(workdir.tau, chosen)
    evaluate.evaluate(
        runner,
        workdir,
        data,
        tau,
        output,
        options,
        _COUNT_LEFT_OUT.value,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
