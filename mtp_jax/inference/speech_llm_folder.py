"""A folder with a released speech LLM, used as a model just as it is."""

from __future__ import annotations

from pathlib import Path

from mtp_jax.config import Config, Data, Evaluation, Heads, Pretrained
from mtp_jax.inference.released_folder import ReleasedFolder
from mtp_jax.models.speech_windows import (
    PROMPT_TOKENS,
    has_windows,
    prompt_rows,
    window_samples,
)
from mtp_jax.pretrained import adapter
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.pretrained.speech_llm import family_of
from mtp_jax.tokenizer.base import NAMES, VOCABULARY
from mtp_jax.tokenizer.speech_llm import CHAT_TEMPLATES

_MAX_TOKENS = 448  # of a chunk's text: Whisper's window, of as much speech, has no more


class SpeechLlmFolder(ReleasedFolder):
    """What a workdir is to the commands, for a folder of `transformers`.

    Args:
        source: the folder, or ``hf://OWNER/NAME``.
    """

    kind = "speech LLM"

    def read_config(self) -> Config:
        """A config with the model's sizes; chunks have 30 s, or as much as a window.

        Raises:
            PretrainedError: the folder is damaged, or no model that can be built.
        """
        config = with_sizes(Config(pretrained=Pretrained(model=self.source), heads=Heads(count=1)))
        samples = window_samples(config)
        needed = prompt_rows(samples, config) + PROMPT_TOKENS + 1
        most = min(_MAX_TOKENS, config.speech_llm.positions - needed)
        seconds = samples / config.front_end.sample_rate
        if most < 1:
            raise PretrainedError(
                f"{self.config}: {config.speech_llm.positions} positions have no place for"
                f" {seconds:g} s of audio and a text (max_position_embeddings): choose another"
                " model"
            )
        # Shorter chunks take less time where none is padded to a window: a program for each length.
        shares = (1.0,) if has_windows(config) else (1 / 3, 2 / 3, 1.0)
        lengths = tuple(share * seconds for share in shares)
        return Config(
            pretrained=config.pretrained,
            front_end=config.front_end,
            data=Data(bucket_seconds=lengths, max_tokens=most),
            decoder=config.decoder,
            speech_llm=config.speech_llm,
            heads=config.heads,
            evaluation=Evaluation(bucket_seconds=lengths, strategies=("greedy",)),
        )

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file, of any format that such folders have."""
        files = (self.path / name for name in (*NAMES, VOCABULARY))
        return next((file for file in files if file.exists()), None)

    @property
    def own_files(self) -> list[Path]:
        """Those, and the files of a LoRA adapter and of a chat template."""
        names = (adapter.CONFIG, adapter.FILE, *CHAT_TEMPLATES)
        return [*super().own_files, *(self.path / name for name in names)]


def is_speech_llm_folder(folder: Path) -> bool:
    """Whether a folder holds a released speech LLM of a family that is known."""
    return bool(family_of(folder))
