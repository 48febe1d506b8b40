"""Transcribes recordings.

    python -m mtp_jax.transcribe FILE_OR_FOLDER_OR_GLOB... --model=DIR [--output_dir=DIR]
        [--format=txt,json,srt,vtt] [--strategy=verify] [--tau=0.9] [--batch_size=16]

DIR is a workdir or a folder that a model was exported to. Recordings may be of any length, rate and
number of channels; they are cut at pauses and decoded in batches over all of them. Without
--output_dir texts are printed. With it each recording gets a file a format, and the same command
goes on where it stopped: it skips recordings whose files are there, none of them older, unless told
to --overwrite.

A recording that cannot be used is reported, and the rest goes on. The exit status is 0 if all were
transcribed, 1 if any could not be, 2 if the flags are wrong.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mtp_jax import cli
from mtp_jax.decoding import registry
from mtp_jax.transcription.formats import FORMATS, formatted
from mtp_jax.transcription.outputs import Task, find, finished, outputs, shown, write

if TYPE_CHECKING:
    from mtp_jax.transcription.transcriber import Transcriber

_MODEL = flags.DEFINE_string("model", None, "a workdir, or an exported model", required=True)
_OUTPUT = flags.DEFINE_string("output_dir", None, "folder of the transcripts; default: print them")
_FORMAT = flags.DEFINE_list("format", None, f"of {', '.join(FORMATS)}; default: txt")
_STRATEGY = flags.DEFINE_string("strategy", "verify", f"one of {', '.join(registry.names())}")
_TAU = flags.DEFINE_float("tau", None, "of threshold; default: the model's")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "pieces decoded at once", lower_bound=1)
_ENCODER = cli.encoder_flag()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "transcribe finished recordings again")

log = logging.getLogger("mtp_jax")


def main(argv: list[str]) -> int:
    formats = _FORMAT.value or ["txt"]
    for kind in formats:
        if kind not in FORMATS:
            raise flags.Error(f"--format={kind} is not one of {', '.join(FORMATS)}")
    if _STRATEGY.value not in registry.names():
        raise flags.Error(
            f"--strategy={_STRATEGY.value} is not one of {', '.join(registry.names())}"
        )
    if len(argv) < 2:
        raise flags.Error("name recordings, folders or globs")
    if not _OUTPUT.value and len(formats) > 1:
        raise flags.Error("several formats need --output_dir: only one can be printed")
    folder = Path(_OUTPUT.value).expanduser() if _OUTPUT.value else None
    tasks, missing = find(argv[1:])
    for sentence in missing:
        log.error("error: %s", sentence)
    todo = tasks
    if folder and not _OVERWRITE.value:
        todo = [t for t in tasks if not finished(t, outputs(t, folder, formats).values())]
        if len(todo) < len(tasks):
            log.info("%d finished before: skipped", len(tasks) - len(todo))
    failed = len(missing)
    if todo:
        failed += _transcribe(_model(), todo, folder, formats)
    if failed:
        log.error("%d of %d could not be transcribed", failed, len(tasks) + len(missing))
    return int(failed > 0)


def _model() -> Transcriber:
    from mtp_jax.checkpoints.workdir import Workdir
    from mtp_jax.transcription.loading import load  # imported late: errors in flags come at once

    model = load(_MODEL.value, batch_size=_BATCH_SIZE.value, encoder=_ENCODER.value)
    cli.start_jax(Workdir(_MODEL.value).read_config())
    return model


def _transcribe(
    model: Transcriber, todo: list[Task], folder: Path | None, formats: list[str]
) -> int:
    """Transcribes and writes or prints; how many recordings failed."""
    import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from mtp_jax.audio.reading import AudioError, audio_seconds

    def seconds(task: Task) -> float:
        try:
            return audio_seconds(task.path)
        except (AudioError, OSError):
            return 0.0  # what is wrong is said when it is its turn

    def recordings() -> Iterator[tuple[Task, Path]]:
        for task in todo:
            yield task, task.path

    failed = 0
    total = sum(map(seconds, todo))
    bar = tqdm.tqdm(
        total=total,
        bar_format="{percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of audio{postfix}",
        dynamic_ncols=True,
        postfix="starting",
    )

    def progress(done: float) -> None:
        bar.update(min(done, max(total - bar.n, 0)))
        elapsed = bar.format_dict["elapsed"]
        bar.set_postfix_str(f"{bar.n / max(elapsed, 1e-3):.0f} a second, [{elapsed:.0f} s]")

    def compiling(rows: int, seconds: float) -> None:
        bar.set_postfix_str(f"compiling for {rows} x {seconds:.0f} s ...")

    strategy = model.strategy(_STRATEGY.value, _TAU.value)
    with bar, logging_redirect_tqdm([log], tqdm.tqdm):
        for task, outcome in model.transcribe_all(
            recordings(), strategy=strategy, progress=progress, on_compile=compiling
        ):
            if isinstance(outcome, AudioError):
                log.error("error: %s", " ".join(str(outcome).split()))
                failed += 1
            elif folder:
                try:
                    write(outcome, outputs(task, folder, formats))
                except OSError as error:
                    log.error("error: %s is not written: %s", shown(task.name), error.strerror)
                    failed += 1
            else:
                name = f"{shown(task.path)}:\n" if len(todo) > 1 else ""
                bar.write(name + formatted(outcome, formats[0]), file=sys.stdout, end="")
    return failed


if __name__ == "__main__":
    sys.exit(cli.run(main))
