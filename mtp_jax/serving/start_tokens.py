"""The tokens that a client's text begins with, by its language, task and prompt."""

from __future__ import annotations

from mtp_jax.serving.refusal import Refused
from mtp_jax.tokenizer import TokenizerError
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.transcriber import Transcriber


def start_tokens(model: Transcriber, language: str, task: str, prompt: str) -> tuple[int, ...]:
    """`Transcriber.start_tokens`, for a client.

    Raises:
        Refused: the model has no such language or task, or cannot take the prompt.
    """
    try:
        return model.start_tokens(language, task, prompt)
    except LanguageError as error:
        raise Refused(400, str(error), code="invalid_value") from None
    except TokenizerError:  # its message names a file of the service
        said = "the model's tokenizer cannot encode the prompt: change it, or leave it out"
        raise Refused(400, said, "prompt", "invalid_value") from None
