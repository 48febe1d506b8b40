"""A folder with a finished Whisper, used as a model just as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Config, Data, Evaluation, FrontEnd, Heads, Pretrained
from mtp_jax.paths import to_path
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.pretrained.source import resolve
from mtp_jax.pretrained.weights import weight_files
from mtp_jax.pretrained.whisper import whisper_architecture
from mtp_jax.pretrained.whisper_decoder import whisper_decoder_architecture


class WhisperFolder(Workdir):
    """What a workdir is to the commands, for a folder of Hugging Face or CTranslate2.

    Nothing is written to it: it may be read-only, or belong to other programs.

    Args:
        source: the folder, or ``hf://OWNER/NAME``.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        super().__init__(resolve(str(source)))
        self.source = str(source)

    def read_config(self) -> Config:
        """A config with the model's sizes.

        Raises:
            PretrainedError: the folder is damaged, or no Whisper that can be built.
        """
        window = whisper_architecture(self.path).config.positions / 50
        decoder, _ = whisper_decoder_architecture(self.path)
        most = decoder.positions // 2  # the rest of its window is for earlier text
        return with_sizes(
            Config(
                pretrained=Pretrained(model=self.source),
                front_end=FrontEnd(flavour="whisper"),
                data=Data(bucket_seconds=(window,), max_tokens=most),
                heads=Heads(count=1),
                evaluation=Evaluation(bucket_seconds=(window,), strategies=("greedy",)),
            )
        )

    def evaluation(self, data: str) -> Path:
        """Below the current folder."""
        name = self.source.removeprefix("hf://").strip("/").replace("/", "-")
        return to_path("evaluations") / name[-100:] / super().evaluation(data).name

    def read_parts(self) -> dict[str, Any]:
        """All parameters are those of the folder, whatever they are."""
        return {"sha256": {}, "left_out": ["*"]}

    @property
    def weights(self) -> list[Path]:
        """The files that hold its parameters."""
        return weight_files(self.path)[1]


def is_whisper_folder(folder: Path) -> bool:
    """Whether a folder holds a Whisper as Hugging Face or CTranslate2 keep it."""
    if (folder / "model.bin").is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "whisper"
