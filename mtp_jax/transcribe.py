"""Transcribes recordings.

    python -m mtp_jax.transcribe FILE_OR_FOLDER_OR_GLOB... [--model=DIR] [--output_dir=DIR]
        [--format=txt,json,srt,vtt] [--strategy=auto] [--tau=0.9] [--batch_size=16]
    arecord -f S16_LE -r 16000 | python -m mtp_jax.transcribe --live [--model=DIR]

DIR is a workdir, a folder that a model was exported to, or a Whisper; by default it is the clone's
models/whisper-base, Whisper base with heads. Recordings may be of any length, rate and
number of channels; ``-`` reads one from standard input. They are cut at pauses and decoded in
batches over all of them. Without --output_dir texts are printed. With it each recording gets a file
a format, and the same command goes on where it stopped: it skips recordings whose files are there
and of this recording, model and strategy. It never takes the place of a text of another recording,
or of a file that it did not write, unless told to --overwrite.

--live reads PCM from standard input while it is spoken (16-bit; raw at 16 kHz with one channel, or
WAV of any rate). A terminal shows captions that grow; a pipe gets a line for each stretch of
speech. Ctrl-C ends the stream, not the texts of what was heard.

A recording that cannot be used is reported, and the rest goes on. The exit status is 0 if all were
transcribed, 1 if any could not be, 2 if the flags are wrong.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import contextlib
import dataclasses
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mtp_jax import cli
from mtp_jax.decoding import registry
from mtp_jax.flag_checks import check_tau, mesh_of
from mtp_jax.paths import OutputError, check_writable, to_path
from mtp_jax.tokenizer.whisper_tokens import TASKS
from mtp_jax.transcription.finding import Found, few, find
from mtp_jax.transcription.formats import FORMATS, formatted
from mtp_jax.transcription.marks import Model
from mtp_jax.transcription.outputs import Clash, Job, Plan, State, plan, write

if TYPE_CHECKING:
    from mtp_jax.checkpoints.workdir import Workdir
    from mtp_jax.transcription.transcriber import Transcriber

_MODEL = cli.optional_model_flag()
_OUTPUT = flags.DEFINE_string("output_dir", None, "folder of the transcripts; default: print them")
_FORMAT = flags.DEFINE_list("format", None, f"of {', '.join(FORMATS)}; default: txt")
_STRATEGY = flags.DEFINE_string("strategy", "auto", f"one of {', '.join(registry.names())}")
_TAU = flags.DEFINE_float("tau", None, "of threshold; default: the model's")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "chunks decoded at once", lower_bound=1)
_LANGUAGE = flags.DEFINE_string(
    "language",
    "",
    "of a Whisper or a speech LLM: code of the language, such as de; default: it is detected",
)
_TASK = flags.DEFINE_enum("task", "transcribe", TASKS, "of a Whisper; translations are English")
_PROMPT = flags.DEFINE_string(
    "prompt", "", "of a Whisper, or of a Qwen3-ASR: earlier text, or words to be expected"
)
_TIMESTAMPS = flags.DEFINE_bool(
    "timestamps", False, "of a Whisper: segments are the phrases whose times it writes itself"
)
_PRETRAINED = cli.pretrained_flag()
_SILENCE = cli.silence_flag()
_DTYPE = cli.dtype_flag()
_WEIGHTS = cli.weights_flag()
_HEADS = cli.heads_flag()
_DRAFT_MODEL = cli.draft_model_flag()
_MESH = cli.mesh_flag()
_LIVE = cli.live_flag()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "transcribe finished recordings again")

log = logging.getLogger("mtp_jax")
_SENTENCES = 5  # of one kind


def main(argv: list[str]) -> int:
    formats = list(dict.fromkeys(_FORMAT.value or ["txt"]))
    for kind in formats:
        if kind not in FORMATS:
            raise flags.Error(f"--format={kind} is not one of {', '.join(FORMATS)}")
    if _STRATEGY.value not in registry.names():
        raise flags.Error(
            f"--strategy={_STRATEGY.value} is not one of {', '.join(registry.names())}"
        )
    check_tau(_TAU.value)
    mesh_of(_MESH.value)  # refused at once
    if _LIVE.value:
        return _captions(argv[1:])
    if len(argv) < 2:
        raise flags.Error("name recordings, folders or globs")
    if "" in argv[1:]:
        raise flags.Error("the name of a recording is empty (is a variable unset?)")
    if not _OUTPUT.value and len(formats) > 1:
        raise flags.Error("several formats need --output_dir: only one can be printed")
    if _OUTPUT.value and "://" in _OUTPUT.value:
        raise flags.Error(f"--output_dir={_OUTPUT.value} lies in a bucket: mount it, or copy later")
    model = cli.model_or_default(_MODEL.value)
    folder = to_path(_OUTPUT.value) if _OUTPUT.value else None
    if folder:
        check_writable(folder, "output_dir")
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(_spooled_stdin()) if "-" in argv[1:] else None
        return _run(find(argv[1:], stdin), model, folder, formats)


def _captions(arguments: list[str]) -> int:
    """Captions of standard input, as it comes."""
    if arguments not in ([], ["-"]):
        raise flags.Error(f"--live reads standard input: leave {arguments[0]!r} out")
    for name in ("output_dir", "format", "timestamps", "tau"):
        if flags.FLAGS[name].present:
            raise flags.Error(f"--live prints text alone: leave --{name} out")
    if sys.stdin.isatty():
        raise flags.Error("--live reads standard input, which is a terminal: pipe PCM into it")
    model_folder = cli.model_or_default(_MODEL.value)
    from mtp_jax.audio.pcm_stream import pcm_blocks
    from mtp_jax.inference.model_folder import open_model_folder
    from mtp_jax.transcription.captions import Captions
    from mtp_jax.transcription.live_stream import transcribe_live

    model = _model(open_model_folder(model_folder))
    shown = Captions(sys.stdout, sys.stdout.isatty())
    # A thread that waits in a buffered stream would hold its lock as Python ends, which aborts.
    stdin = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    with interrupts.deferred():  # what was heard is settled
        for event in transcribe_live(
            model,
            pcm_blocks(stdin, model.sample_rate),
            strategy=_STRATEGY.value,
            language=_LANGUAGE.value,
            task=_TASK.value,
            prompt=_PROMPT.value,
            stop=lambda: interrupts.requested() is not None,
            on_ready=lambda: log.info("listening"),
        ):
            shown.show(event)
    return 0


@contextlib.contextmanager
def _spooled_stdin() -> Iterator[Path]:
    """A file of what standard input holds, as readers of audio go back and forth."""
    if sys.stdin.isatty():
        raise flags.Error("- is standard input, which is a terminal: pipe a recording into it")
    with tempfile.TemporaryDirectory(prefix="mtp_jax_") as folder:
        file = Path(folder) / "stdin"
        try:
            with file.open("wb") as out:
                shutil.copyfileobj(sys.stdin.buffer, out)
        except OSError as error:
            raise OutputError(
                f"what standard input holds cannot be kept in {folder} ({error.strerror}): set"
                " TMPDIR to a folder with room"
            ) from None
        yield file


def _run(found: Found, model: str, folder: Path | None, formats: list[str]) -> int:
    from mtp_jax.inference.model_folder import open_model_folder

    for sentence in found.missing:
        log.error("error: %s", sentence)
    if found.left_out:
        log.warning("%s", found.left_out)
    failed = len(found.missing)
    if found.tasks:
        workdir = open_model_folder(model)
        made_by = _made_by(workdir) if folder else None
        jobs = [Job(task) for task in found.tasks]
        if folder and made_by:
            todo = plan(found.tasks, folder, formats, made_by, _OVERWRITE.value)
            _report(todo)
            jobs = todo.jobs
            failed += len(todo.clashes)
        if jobs:
            failed += _transcribe(_model(workdir), jobs, made_by, formats)
    if failed:
        log.error(
            "%d of %d could not be transcribed", failed, len(found.tasks) + len(found.missing)
        )
    return int(failed > 0)


def _made_by(workdir: Workdir) -> Model:
    """What texts are marked with.

    Not with the drafter, which changes no text: finished ones are not made again for its sake.
    """
    from mtp_jax.inference.model_folder import model_digest
    from mtp_jax.transcription.loading import default_tau
    from mtp_jax.transcription.transcriber import strategy_of

    tau = default_tau(workdir) if _TAU.value is None else _TAU.value
    strategy = strategy_of(_STRATEGY.value, workdir.read_config(), tau)
    asked = [x for x in (_LANGUAGE.value, _TASK.value, _PROMPT.value) if x not in ("", TASKS[0])]
    asked += [_DTYPE.value] if _DTYPE.value else []
    asked += [f"weights={_WEIGHTS.value}"] if _WEIGHTS.value else []
    asked += [] if _SILENCE.value is None else [f"silence={_SILENCE.value:g}"]
    asked += ["timestamps"] if _TIMESTAMPS.value else []
    return Model(model_digest(workdir, _PRETRAINED.value), " ".join([repr(strategy), *asked]))


def _report(todo: Plan) -> None:
    """Says what of the outputs was there before."""
    edited = [job.task for job in todo.finished if State.EDITED in job.states]
    stale = [job.task for job in todo.jobs if State.STALE in job.states]
    if todo.finished:
        log.info("%d finished before: skipped", len(todo.finished))
    if edited:
        log.warning("%s changed since written: left as they are", few(edited))
    if stale:
        log.info("%s transcribed again: the recording, model or strategy is another", few(stale))
    for sentence in todo.clashes[:_SENTENCES]:
        log.error("error: %s", sentence)
    if len(todo.clashes) > _SENTENCES:
        log.error("error: and so with %d more", len(todo.clashes) - _SENTENCES)


def _model(workdir: Workdir) -> Transcriber:
    from mtp_jax.transcription.loading import load  # imported late: errors in flags come at once

    cli.start_jax(workdir.read_config())  # before anything asks for a device
    return load(
        workdir.path,
        batch_size=_BATCH_SIZE.value,
        mesh=cli.lay_out(mesh_of(_MESH.value)),
        pretrained=_PRETRAINED.value,
        silence=_SILENCE.value,
        dtype=_DTYPE.value,
        heads=_HEADS.value,
        timestamps=_TIMESTAMPS.value,
        draft_model=_DRAFT_MODEL.value or "",
        weights=_WEIGHTS.value,
    )


def _transcribe(
    model: Transcriber, jobs: list[Job], made_by: Model | None, formats: list[str]
) -> int:
    """Transcribes and writes or prints; how many recordings failed."""
    import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from mtp_jax.audio.estimate import estimated_seconds
    from mtp_jax.audio.reading import AudioError
    from mtp_jax.transcription.progress import ProgressBar

    failed = 0
    strategy = model.strategy(_STRATEGY.value, _TAU.value)
    model.start_tokens(_LANGUAGE.value, _TASK.value, _PROMPT.value)  # refused before the work
    estimates = [estimated_seconds(job.task.path) for job in jobs]
    progress = ProgressBar(sum(estimates))  # shows itself
    outcomes = model.transcribe_all(
        (((job, estimate), job.begin()) for job, estimate in zip(jobs, estimates, strict=True)),
        strategy=strategy,
        progress=progress.advance,
        on_compile=progress.compiling,
        language=_LANGUAGE.value,
        task=_TASK.value,
        prompt=_PROMPT.value,
    )
    bar = progress.bar
    with bar, logging_redirect_tqdm([log], tqdm.tqdm), contextlib.closing(outcomes):  # type: ignore[type-var]  # a generator
        for (job, estimate), outcome in outcomes:
            if isinstance(outcome, AudioError):
                sentence = str(outcome).replace(str(job.task.path), job.task.shown)
                log.error("error: %s", " ".join(sentence.split()))
                failed += 1
                continue
            said = tuple(w.replace(str(job.task.path), job.task.shown) for w in outcome.warnings)
            outcome = dataclasses.replace(outcome, warnings=said)
            progress.learn(outcome.audio_seconds - estimate)
            if made_by:
                try:
                    write(outcome, job, made_by)
                except Clash as clash:
                    log.error("error: %s", clash)
                    failed += 1
                except OSError as error:
                    reason = f"{error.strerror}: {error.filename}"
                    log.error("error: %s is not written (%s)", job.task.shown, reason)
                    failed += 1
            else:
                name = f"{job.task.shown}:\n" if len(jobs) > 1 else ""
                bar.write(name + formatted(outcome, formats[0]), file=sys.stdout, end="")
    return failed


if __name__ == "__main__":
    sys.exit(cli.run(main, goes_on=lambda: bool(_OUTPUT.value)))
