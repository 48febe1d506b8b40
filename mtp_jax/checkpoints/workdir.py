"""The folder of one run: its config, tokenizer, checkpoints, logs and results."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtp_jax.config import FAMILIES, Config, ConfigError, differences, from_saved
from mtp_jax.paths import in_bucket, to_path, write_whole
from mtp_jax.untrusted import read_json


class WorkdirError(ValueError):
    """A workdir that cannot be used; the message says why, and what to do."""


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` so that `path` holds either all of it or what it held before."""
    write_whole(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


# Fields that the closing evaluation alone reads.
_EVALUATED = {
    f"evaluation.{field}"
    for field in (
        *("taus", "max_wer_increase", "strategies"),
        *("beams", "beam_rounds", "length_power"),
    )
}


class Workdir:
    """Names of the files in a workdir.

    Args:
        path: of the folder, local or ``gs://``; made if need be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = to_path(path)
        self.config = self.path / "config.json"
        self.parts = self.path / "parts.json"
        self.decoder = self.path / "model.safetensors"
        self.speech = self.path / "speech.safetensors"
        self.heads = self.path / "heads.safetensors"
        self.digests = self.path / "digests.json"
        self.results = self.path / "results.json"
        self.tau = self.path / "tau.json"
        self.confidence = self.path / "confidence.json"
        self.hypotheses = self.path / "hypotheses"
        self.report = self.path / "data_report.json"
        self.dev = self.path / "dev.json"
        self.tensorboard = self.path / "tensorboard"

    @property
    def is_export(self) -> bool:
        """Whether a model was exported to it, whole: this file is written last."""
        return self.heads.exists()

    @property
    def tokenizer(self) -> pathlib.Path | None:
        """The tokenizer's file, None before there is one: its format decides the name."""
        files = (self.path / name for name in ("tokenizer.json", "tokenizer.model"))
        return next((file for file in files if file.exists()), None)

    def evaluation(self, data: str) -> pathlib.Path:
        """The folder of the results on a source of data, which training leaves alone."""
        name = re.sub(r"[^\w.+-]+", "-", data).strip("-.")[-100:]
        return self.path / "evaluations" / (name or "data")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made if need be, within.

        The lock is on the folder itself, and the system takes it away however the process ends. In
        a bucket, and on file systems without locks, nobody is kept out.

        Raises:
            WorkdirError: another run is in it, or it cannot be made.
        """
        if in_bucket(self.path):
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise WorkdirError(f"{self.path} cannot be used as a workdir: {error}") from error
        try:
            with contextlib.suppress(OSError):  # it has no locks
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise WorkdirError(
                        f"another run trains in {self.path}: wait until it has ended, or choose"
                        " another --workdir"
                    ) from None
            yield
        finally:
            os.close(folder)

    def claim(self, config: Config) -> None:
        """Makes this the workdir of `config`.

        A run may go on with other settings of the closing evaluation, which training does not read.

        Raises:
            WorkdirError: it belongs to another config, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.config.exists():
                changed = differences(self.read_config(), config)
                others = [each for each in changed if each.partition(":")[0] not in _EVALUATED]
                if changed and not others:
                    write_json(self.config, dataclasses.asdict(config))
                if others:
                    raise WorkdirError(
                        f"{self.path} belongs to a run with another config ({'; '.join(others)}):"
                        " choose another --workdir, or undo the change"
                    )
            else:
                write_json(self.config, dataclasses.asdict(config))
        except OSError as error:
            raise WorkdirError(f"{self.path} cannot be used as a workdir: {error}") from error

    def read_config(self) -> Config:
        """The config that the workdir, or the folder that a model was exported to, belongs to.

        Raises:
            WorkdirError: there is none, it cannot be read, or it is of another program.
        """
        try:
            values = dict(read_json(self.config))
            if "mtp_jax" in values and not self.is_export:
                raise WorkdirError(f"{self.path} is an export that is not whole: export again")
            values = dict(values.get("mtp_jax", values))
            if other := _other_program(values):
                raise WorkdirError(
                    f"{self.path} is a {other}, not a workdir or export of mtp_jax: give a folder"
                    " that mtp_jax.train or mtp_jax.export wrote, a Whisper or a speech LLM"
                    f" ({', '.join(FAMILIES.values())})"
                )
            return from_saved(values)
        except FileNotFoundError:
            raise WorkdirError(f"{self.path} is no workdir: it has no config.json") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, (ConfigError, WorkdirError)):
                raise
            raise WorkdirError(f"{self.config} cannot be read: {error}") from error

    def record_pretrained(
        self,
        digests: dict[str, str],
        left_out: Sequence[str],
        revisions: Mapping[str, str] | None = None,
    ) -> None:
        """Notes which pretrained parts the run begins with, and which parameters it never saves.

        Args:
            digests: of the parts' weights, by field of `config.pretrained`.
            left_out: paths of parameters that have to be imported again.
            revisions: commits of the parts that come from the Hub, by the same fields: the weights
                are checked by their digests, and by these they can be found again.

        Raises:
            WorkdirError: the parts are not those that the run began with.
        """
        known = self.read_parts()
        if known is None:
            parts = {"sha256": digests, "left_out": list(left_out)}
            if revisions:
                parts["revisions"] = dict(revisions)
            write_json(self.parts, parts)
            return
        for name in self.changed_parts(digests):
            raise WorkdirError(
                f"config.pretrained.{name} no longer holds the weights that {self.path} began"
                f" with (SHA-256 {known['sha256'].get(name)}): put those back"
            )

    def changed_parts(self, digests: dict[str, str]) -> list[str]:
        """Names of the parts that are not those of `record_pretrained`."""
        known = (self.read_parts() or {"sha256": {}})["sha256"]
        return [name for name, digest in digests.items() if known.get(name) != digest]

    def read_parts(self) -> dict[str, Any] | None:
        """What `record_pretrained` wrote: ``sha256`` and ``left_out``, or None.

        An export of what was added to a Whisper also has ``vocab_size``, that of the Whisper; there
        may be ``revisions``, commits on the Hub.
        """
        try:
            parts = read_json(self.parts)
            dict(parts["sha256"]), list(parts["left_out"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkdirError(f"{self.parts} cannot be read: {error}") from error
        return dict(parts)

    def read_digests(self) -> dict[str, str]:
        """SHA-256 of an export's files of weights, by name; empty in those of earlier versions.

        Raises:
            WorkdirError: the file cannot be read.
        """
        try:
            return {str(k): str(v) for k, v in read_json(self.digests).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise WorkdirError(f"{self.digests} cannot be read ({error}): export again") from error

    def read_tau(self) -> dict[str, Any] | None:
        """How tau was chosen on dev (``tau``, and the ``rows`` of the sweep); None before that."""
        try:
            kept = read_json(self.tau)
            float(kept["tau"]), list(kept["rows"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkdirError(f"{self.tau} cannot be read ({error}): remove it") from error
        return dict(kept)

    def read_dev(self) -> dict[int, float] | None:
        """WER on dev (per cent) by the step that it was decoded behind; None if none is noted.

        Raises:
            WorkdirError: its file cannot be read.
        """
        try:
            return {int(step): float(wer) for step, wer in read_json(self.dev)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise WorkdirError(
                f"{self.dev} cannot be read ({error}): write [] into it, and training with the same"
                " command decodes dev again behind its last step"
            ) from error

    def write_dev(self, wer_by_step: dict[int, float]) -> None:
        """Writes what `read_dev` reads."""
        write_json(self.dev, sorted(wer_by_step.items()))


def _other_program(config: dict[str, Any]) -> str:
    """What the folder of a config.json is if it is not ours; else empty."""
    kind = config.get("architectures") or config.get("model_type")
    name = kind[0] if isinstance(kind, list) else kind
    if isinstance(name, str):
        family = next(
            (x for x in ("Whisper", "Llama") if x.lower() in name.lower()), "Hugging Face"
        )
        return f"{family} model (config.json says {name[:80]})"
    if config.keys() & {field.name for field in dataclasses.fields(Config)}:
        return ""
    return f"folder of another program (config.json has {', '.join([*config][:3]) or 'nothing'})"


def commit() -> str | None:
    """Commit of the checkout that this code runs from, None outside one.

    ``-dirty`` is appended if tracked files were changed since.
    """
    file = pathlib.Path(__file__)

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *args], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", file.name):  # installed inside someone else's
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
