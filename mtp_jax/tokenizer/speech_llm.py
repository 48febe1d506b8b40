"""The tokenizer of a released speech LLM: it knows the prompt, and tells text from what is no text.

The model's config.json beside the tokenizer says of which family it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_jax.tokenizer.base import TokenizerError
from mtp_jax.tokenizer.huggingface import HuggingFaceTokenizer, read_config
from mtp_jax.tokenizer.speech_prompts import TEMPLATES, Template, make_prompt, template_of
from mtp_jax.untrusted import read_bytes

if TYPE_CHECKING:
    import tokenizers

CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_LONGEST_HEADING = 16  # tokens


class SpeechLlmTokenizer(HuggingFaceTokenizer):
    """A `HuggingFaceTokenizer` that knows what its model is told, and what it writes.

    Attributes:
        speech: the prompt.
        ends: ids beside EOS that end a text.
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        template: Template,
        ends: Sequence[int],
        pad: int | None = None,
    ) -> None:
        """Takes a tokenizer.

        Args:
            model: the tokenizer.
            template: of the prompt.
            ends: ids that end a text, of which the first is EOS.
            pad: id of padding.

        Raises:
            TokenizerError: it lacks a special token.
        """
        super().__init__(model, ends[0], ends[0], pad)
        self._template = template
        for token in ends:
            if not (0 <= token < self.vocab_size and self.pieces[token]):
                raise TokenizerError(f"has no token {token}, which is to end a text")
        self.ends = tuple(ends[1:])
        self._never |= {*ends}
        self.speech = make_prompt(self._template, self.pieces, self.encode)

    @property
    def template(self) -> Template:
        """Of the prompt."""
        return self._template

    def heading(self, ids: Sequence[int]) -> tuple[int, str]:
        """How many tokens of a text come before what was said, and the language that they tell.

        Args:
            ids: what the model wrote, without EOS.

        Returns:
            0 and nothing where it begins at once. The language is its code; empty if it is none
            that is known.
        """
        template = self._template
        if template.heading_end:
            ids = list(ids)
            token = self.pieces.index(template.heading_end)
            if token not in ids:
                return 0, ""
            end = ids.index(token)
            found = re.fullmatch(template.heading, super()._decode(ids[:end]).strip())
            return end + 1, self._code(found[1]) if found else ""
        head = list(ids[:_LONGEST_HEADING])
        if not template.heading or not re.match(template.heading, super()._decode(head).strip()):
            return 0, ""
        for length in range(1, len(head) + 1):
            if found := re.fullmatch(template.heading, super()._decode(head[:length]).strip()):
                return length, self._code(found[1])
        return 0, ""

    def _code(self, told: str) -> str:
        """The code of a language that is told by code or by name."""
        for code, name in self._template.languages:
            if told.lower() in (code, name.lower()):
                return code
        return ""

    def _decode(self, ids: list[int]) -> str:
        return super()._decode(ids[self.heading(ids)[0] :])


def family_of(folder: Path) -> str:
    """The family of the model whose config.json is in a folder; empty if it is of none.

    Raises:
        TokenizerError: it cannot be read.
    """
    kind = read_config(folder / "config.json").get("model_type")
    return kind if isinstance(kind, str) and kind in TEMPLATES else ""


def read(model: tokenizers.Tokenizer, folder: Path, family: str) -> SpeechLlmTokenizer:
    """The tokenizer of a speech LLM, with the ids that end a text by the configs in `folder`.

    Raises:
        TokenizerError: something of it is missing or damaged.
    """
    configs = [read_config(folder / name) for name in ("generation_config.json", "config.json")]
    nested = configs[1].get("text_config") or {}
    ends: list[Any] = []
    for config in (*configs, nested if isinstance(nested, dict) else {}):
        given = config.get("eos_token_id")
        ends = given if isinstance(given, list) else [] if given is None else [given]
        if ends:
            break
    if not ends or not all(type(token) is int for token in ends):
        raise TokenizerError(
            "goes with configs that name no eos_token_id: put the model's generation_config.json"
            " beside it"
        )
    pad = configs[0].get("pad_token_id", configs[1].get("pad_token_id"))
    template = template_of(family, _chat_template(folder))
    return SpeechLlmTokenizer(model, template, ends, pad if type(pad) is int else None)


def _chat_template(folder: Path) -> str:
    """The chat template in a folder, wherever it is kept; empty if there is none.

    Raises:
        TokenizerError: it cannot be read.
    """
    jinja, json, config = (folder / name for name in CHAT_TEMPLATES)
    try:
        if jinja.is_file():
            return read_bytes(jinja).decode()
    except (OSError, ValueError):
        raise TokenizerError(f"goes with {jinja.name}, which cannot be read") from None
    for file in (json, config):
        found = read_config(file).get("chat_template")
        if isinstance(found, list):  # one of several, by name
            found = "".join(str(each.get("template")) for each in found if isinstance(each, dict))
        if found:
            return str(found)
    return ""
