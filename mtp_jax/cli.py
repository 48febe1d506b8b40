"""What the command lines share: --config, starting JAX, signals, and errors as one sentence.

A command that runs a model may be started as several processes, each with ``--coordinator``,
``--processes`` and ``--process_id``, or the environment variables MTP_COORDINATOR, MTP_PROCESSES
and MTP_PROCESS_ID.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from mtp_jax import interrupts, terminal
from mtp_jax.config import Config, ConfigError, Mesh, check_field, from_config_dict, load_config
from mtp_jax.flag_checks import refuse_empty
from mtp_jax.paths import OutputError

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("MTP_COORDINATOR", ""),
    "of several processes: HOST:PORT of process 0, or auto on TPU pods, GKE and Slurm",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", os.environ.get("MTP_PROCESSES", "-1"), "how many there are"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", os.environ.get("MTP_PROCESS_ID", "-1"), "which of them this is, from 0"
)
_LOST_AFTER = flags.DEFINE_integer(
    "lost_after",
    os.environ.get("MTP_LOST_AFTER", "60"),
    "seconds without a sign of life after which a process is taken for dead and the others end",
)
# A disk that is failing, or a folder that may not be written.
_NO_FAULT_OF_THE_CODE = {
    *(errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE)
}
DEFAULT_MODEL = "models/whisper-base"  # in a clone
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# What is defined by functions of this module belongs to the commands that call them, in --help too.
flags.disclaim_key_flags()


class _ConfigParser(config_flags.config_flags.ConfigFileFlagParser):
    """Of --config: a file or a name, of which config_flags then makes --config.FIELD flags."""

    def __init__(self) -> None:
        super().__init__("config")

    def parse(self, given: str) -> ConfigDict:
        config = load_config(*given.split(":", 1))
        for argument in sys.argv[1:]:
            if override := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                check_field(override[1])
        config.lock()
        return config


class ConfigFlag:
    """``--config=FILE_OR_NAME[:ARGUMENT]`` and ``--config.FIELD=VALUE``; defined when it is built.

    Args:
        meaning: of the config, for --help.
        required: whether the command has no other way to be told what to do.
    """

    def __init__(self, meaning: str, required: bool = True) -> None:
        config_flags.DEFINE_config_file("config", None, f"{meaning}: a file or name of configs/")
        flags.FLAGS["config"].parser = _ConfigParser()
        if required:
            flags.mark_flag_as_required("config")

    @property
    def is_given(self) -> bool:
        """Whether there is one."""
        return flags.FLAGS["config"].value is not None

    @property
    def value(self) -> Config:
        """The config.

        Raises:
            ConfigError: a value of it is wrong.
        """
        values: Any = flags.FLAGS["config"].value
        return from_config_dict(values)

    @property
    def name(self) -> str:
        """Its file's, and its argument if it has one: a run of its own each."""
        file, *argument = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
        stem = pathlib.Path(file).name.removesuffix(".py")
        return "_".join([stem, *(re.sub(r"[^\w.-]+", "_", text) for text in argument)])


def model_flag() -> flags.FlagHolder[str]:
    """``--model``, which may be called ``--workdir``."""
    holder: flags.FlagHolder[str] = flags.DEFINE_string(
        "model", None, "a workdir, an exported model, a Whisper or a speech LLM", required=True
    )
    flags.DEFINE_alias("workdir", "model")
    return holder


def optional_model_flag() -> flags.FlagHolder[str | None]:
    """``--model`` of commands that people begin with, which have a `model_or_default`."""
    return flags.DEFINE_string(
        "model",
        None,
        "a workdir, an exported model, a Whisper or a speech LLM (hf://OWNER/NAME too); default:"
        f" {DEFAULT_MODEL} of the clone, which is Whisper base with heads",
    )


def model_or_default(given: str | None) -> str:
    """`given`, or else the folder of heads for Whisper base that comes with the clone.

    Raises:
        flags.Error: none is given, and this is no clone.
    """
    if given:
        return given
    clone = pathlib.Path(__file__).parent.parent  # whatever the current folder is
    for folder in (clone / DEFAULT_MODEL, pathlib.Path(DEFAULT_MODEL)):
        if folder.is_dir():
            return str(folder)
    raise flags.Error(
        f"no --model is given, and {DEFAULT_MODEL} is not here: run this in a clone of mtp_jax, or"
        " name a model, as in --model=hf://openai/whisper-base"
    )


def pretrained_flag(
    meaning: str = "folder or source of the Whisper, speech LLM or frozen speech encoder that the"
    " model goes with; default: where training had it",
    default: str = os.environ.get("MTP_PRETRAINED", ""),
) -> flags.FlagHolder[str]:
    """``--pretrained``, which may be called ``--encoder``: where what a model leaves out lies."""
    holder = flags.DEFINE_string("pretrained", default, meaning)
    flags.DEFINE_alias("encoder", "pretrained")
    return holder


def dtype_flag() -> flags.FlagHolder[str]:
    """``--dtype``, of commands that decode."""
    return flags.DEFINE_enum(
        "dtype",
        "",
        ["", "float32", "bfloat16"],
        "type of matrix products; default: as trained, of a Whisper float32 on a CPU and bfloat16"
        " elsewhere",
    )


def weights_flag() -> flags.FlagHolder[str]:
    """``--weights``, of commands that decode, or plan it."""
    return flags.DEFINE_enum(
        "weights",
        "",
        ["", "int8"],
        "int8 rounds the matrices of the decoder to 8 bits: on accelerators calls take less time,"
        " and texts may differ in a word; default: as they are",
    )


def silence_flag() -> flags.FlagHolder[float | None]:
    """``--silence``, of commands that decode."""
    return flags.DEFINE_float(
        "silence",
        None,
        "of a Whisper: seconds of silence it hears behind an utterance, 30 for its full window;"
        " default: the model's",
        lower_bound=0.0,
    )


def heads_flag() -> flags.FlagHolder[int]:
    """``--heads``, of commands that decode."""
    return flags.DEFINE_integer(
        "heads",
        0,
        "M of serial heads, the most tokens that one call verifies; default: as trained",
        lower_bound=0,
    )


def draft_model_flag() -> flags.FlagHolder[str | None]:
    """``--draft_model``, of commands that decode."""
    return flags.DEFINE_string(
        "draft_model",
        None,
        "a second model of any kind, such as a small Whisper, whose texts are drafts that the model"
        " verifies (auto, verify_ctc): the same text in fewer of its calls",
    )


class _LiveParser(flags.BooleanParser):
    """Takes ``-``, standard input, for yes."""

    def parse(self, argument: Any) -> bool:
        return True if argument == "-" else bool(super().parse(argument))


def live_flag() -> flags.FlagHolder[bool]:
    """``--live``, or ``--live=-``."""
    flag = flags.BooleanFlag(
        "live", False, "captions of PCM on standard input, while it is spoken (--live=- as well)"
    )
    flag.parser = _LiveParser()
    holder: flags.FlagHolder[bool] = flags.DEFINE_flag(flag)
    return holder


def mesh_flag() -> flags.FlagHolder[list[str] | None]:
    """``--mesh``, of commands that decode; `flag_checks.mesh_of` reads it."""
    return flags.DEFINE_list(
        "mesh",
        None,
        "how devices share a model that one cannot hold: fsdp=4 splits its parameters and the"
        " batch, tensor=4 its products; default: as trained, or each has a copy",
    )


def lay_out(mesh: Mesh | None) -> Any:
    """The devices laid out as ``--mesh`` has them, once JAX is started; None if it is not given.

    Raises:
        flags.Error: there are not as many devices.
    """
    if mesh is None:
        return None
    from mtp_jax.distributed import sharding  # imported late: errors in flags come first

    try:
        return sharding.make_mesh(mesh)
    except sharding.MeshError as error:
        raise flags.Error(str(error).replace("config.mesh", "--mesh")) from None


def refuse_arguments(argv: list[str]) -> None:
    """Raises `flags.Error` if there are arguments besides flags."""
    if len(argv) > 1:
        raise flags.Error(f"unexpected argument {argv[1]!r}: every option is a --flag")


def start_jax(config: Config) -> None:
    """Settles how JAX starts, and joins the other processes of the run; before any use of JAX.

    Raises:
        ProcessError: the other processes cannot be found.
    """
    from mtp_jax.distributed import multihost, startup  # imported late: errors in flags come first

    startup.start(config.data.cache_dir)
    multihost.join(
        multihost.Group(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _LOST_AFTER.value)
    )
    if not multihost.is_process_zero():  # what all have to say is said once
        logging.getLogger("mtp_jax").setLevel(logging.WARNING)


def run(
    main: Callable[[list[str]], int | None], goes_on: Callable[[], bool] = lambda: False
) -> int:
    """Runs a command; expected errors become one sentence on stderr.

    Ctrl-C and SIGTERM end it where a loop looks at `interrupts`.

    Args:
        main: the command; its argument is what flags have left over of the command line.
        goes_on: whether the same command, once interrupted, goes on where it stopped. Asked once
            the flags are parsed.

    Returns:
        Exit status: what `main` returns (0 for None), 1 after an expected error, 2 if the flags are
        wrong, 75 where another process of the run is gone, 130 after Ctrl-C, 143 after SIGTERM.
    """
    status = 0
    terminal.prepare()

    def guarded(argv: list[str]) -> None:
        nonlocal status
        _quiet()
        status = _guard(main, argv, goes_on)

    with interrupts.handled():
        try:
            app.run(guarded, flags_parser=_parse)
        except SystemExit as stop:
            status = status or int(stop.code or 0)
        try:
            sys.stdout.flush()
        except OutputError as error:
            status = status or _refuse(_sentence(error), 1)
        _leave(status)
    return status


def _leave(status: int) -> None:
    """Ends one of several processes; one that failed waits for none of the others.

    They learn of it by its silence, and end too.
    """
    jax = sys.modules.get("jax")
    if status and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _quiet() -> None:
    """Our own messages as plain lines on stderr; of other packages only warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_news)
    ours = logging.getLogger("mtp_jax")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers = [handler]


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Orbax's threads fail with: it logs each with a trace, and then raises it here."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def last_of_each(argv: list[str]) -> list[str]:
    """Without the tuples of the config that are given again: the last one counts, as of any field.

    config_flags would make one tuple of them all.
    """
    tuples = [re.match(r"--?(config\.[^=]+)=\(", argument) for argument in argv]
    last = {found[1]: i for i, found in enumerate(tuples) if found}
    return [
        argument
        for i, (argument, found) in enumerate(zip(argv, tuples, strict=True))
        if not found or last[found[1]] == i
    ]


def _parse(argv: list[str]) -> list[str]:
    try:
        arguments: list[str] = flags.FLAGS(last_of_each(argv))
        refuse_empty(flags.FLAGS)
        return arguments
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # config_flags reports an override of an unknown field in one of several ways.
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _guard(
    main: Callable[[list[str]], int | None], argv: list[str], goes_on: Callable[[], bool]
) -> int:
    from mtp_jax.errors import expected  # imported late, as above

    try:
        interrupts.raise_if_requested()  # while the command was imported
        return main(argv) or 0
    except (flags.Error, ConfigError) as error:
        return _refuse(_sentence(error), 2)
    except interrupts.Interrupted as stopped:
        more = " (the same command goes on where it stopped)" if goes_on() else ""
        print(f"{stopped}{'' if stopped.saved else more}", file=sys.stderr)
        return stopped.exit_status
    except expected() as error:
        return _refuse(_sentence(error), getattr(error, "exit_status", 1))
    except OSError as error:
        if error.errno in _NO_SPACE:
            more = "; the same command then goes on where it stopped" if goes_on() else ""
            where = error.filename or "a file"
            return _refuse(f"{where} cannot be written ({error.strerror}): make room{more}", 1)
        if error.errno not in _NO_FAULT_OF_THE_CODE:
            raise
        return _refuse(_sentence(error), 1)
    except MemoryError as error:
        said = f" ({_sentence(error)})" if str(error) else ""
        return _refuse(f"there is not as much memory{said}: take a smaller model or batch", 1)
    except Exception as error:
        if not _lost_another(error):
            raise
        return _refuse(
            f"another process of the run ended or cannot be reached ({_sentence(error)}):"
            " start all of them again to go on from the last checkpoint",
            sys.modules["mtp_jax.distributed.multihost"].LOST,
        )


def _refuse(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def _lost_another(error: Exception) -> bool:
    """Whether `error` is what remains of a collective when one of several processes dies."""
    jax = sys.modules.get("jax")
    return (
        jax is not None
        and jax.distributed.is_initialized()
        and isinstance(error, jax.errors.JaxRuntimeError)
        and any(sign in str(error) for sign in ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED"))
    )


def _sentence(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
