"""A folder with a finished Whisper, used as a model just as it is."""

from __future__ import annotations

from pathlib import Path

from mtp_jax.config import Config, Data, Evaluation, FrontEnd, Heads, Pretrained
from mtp_jax.inference.released_folder import ReleasedFolder
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.pretrained.whisper import whisper_architecture
from mtp_jax.pretrained.whisper_decoder import whisper_decoder_architecture
from mtp_jax.untrusted import read_json


class WhisperFolder(ReleasedFolder):
    """What a workdir is to the commands, for a folder of Hugging Face or CTranslate2.

    Args:
        source: the folder, or ``hf://OWNER/NAME``.
    """

    kind = "Whisper"

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


def is_whisper_folder(folder: Path) -> bool:
    """Whether a folder holds a Whisper as Hugging Face or CTranslate2 keep it."""
    if (folder / "model.bin").is_file():
        return True
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "whisper"
