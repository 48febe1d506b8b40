"""A folder with a finished model of other programs, used as a model just as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.paths import to_path
from mtp_jax.pretrained.source import resolve
from mtp_jax.pretrained.weights import weight_files


class ReleasedFolder(Workdir):
    """What a workdir is to the commands, for a folder of other programs.

    Nothing is written to it: it may be read-only, or belong to others.

    Args:
        source: the folder, or ``hf://OWNER/NAME``.
    """

    kind = "model"  # for messages

    def __init__(self, source: str | os.PathLike[str]) -> None:
        super().__init__(resolve(str(source)))
        self.source = str(source)

    def evaluation(self, data: str) -> Path:
        """Below the current folder."""
        name = self.source.removeprefix("hf://").strip("/").replace("/", "-")
        return to_path("evaluations") / name[-100:] / super().evaluation(data).name

    def read_parts(self) -> dict[str, Any]:
        """All parameters are those of the folder, whatever they are."""
        return {"sha256": {}, "left_out": ["*"]}

    @property
    def own_files(self) -> list[Path]:
        """The files, beside config and tokenizer, on which its texts depend."""
        return weight_files(self.path)[1]
