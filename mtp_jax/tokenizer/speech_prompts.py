"""What a speech LLM is told around the audio, in tokens, and what it writes around the text.

A family's prompt is a template in which special tokens stand by their names. Two places of it are
filled in: the context (words to be expected) and the language. Sources: mistral-common's
``InstructTokenizerV7._encode_instruct_transcription`` for Voxtral, transformers'
``processing_qwen3_asr.py`` for Qwen3-ASR, vLLM's tests of it for GLM-ASR, and for Granite-speech
transformers' tests of 3.3 and ports of 4.x.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from mtp_jax.tokenizer.base import TokenizerError
from mtp_jax.tokenizer.whisper_tokens import LanguageError

AUDIO = -3  # in an array of start tokens: where the rows of the audio stand


@dataclasses.dataclass(frozen=True)
class Template:
    """The prompt of a family, as text; ``{audio}`` ends the first part.

    Attributes:
        name: of the family, for messages.
        audio: name of the token that stands for a row of audio.
        special: names of the special tokens that the parts hold.
        begin: before the context; `before_audio`: behind it.
        behind_audio: up to the language; `end`: behind that.
        language: what tells a language, of which ``{code}`` and ``{name}`` are filled in.
        languages: code and name of each that the model knows.
        takes_context: whether there is a place for a context.
        heading: a regular expression of what stands before the text in what the model writes; its
            first group is the language.
        heading_end: a token that ends the heading and is no part of it, if one does; whatever is
            before it is no text then.
    """

    name: str
    audio: str
    special: tuple[str, ...]
    begin: str = ""
    before_audio: str = ""
    behind_audio: str = ""
    end: str = ""
    language: str = ""
    languages: tuple[tuple[str, str], ...] = ()
    takes_context: bool = False
    heading: str = ""
    heading_end: str = ""


TEMPLATES = {
    "glmasr": Template(
        name="GLM-ASR",
        audio="<|pad|>",
        special=("<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>"),
        before_audio="<|user|>\n<|begin_of_audio|>",
        behind_audio="<|end_of_audio|><|user|>\nPlease transcribe this audio into text",
        end="<|assistant|>\n",
    ),
    "granite_speech": Template(
        name="Granite-speech",
        audio="<|audio|>",
        special=("<|end_of_text|>",),
        before_audio="USER: ",
        behind_audio="can you transcribe the speech into a written format?\n ASSISTANT:",
    ),
    "qwen3_asr": Template(
        name="Qwen3-ASR",
        audio="<|audio_pad|>",
        special=(
            *("<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<asr_text>"),
        ),
        begin="<|im_start|>system\n",
        before_audio="<|im_end|>\n<|im_start|>user\n<|audio_start|>",
        behind_audio="<|audio_end|><|im_end|>\n<|im_start|>assistant\n",
        language="language {name}<asr_text>",
        languages=(
            *(("ar", "Arabic"), ("cs", "Czech"), ("da", "Danish"), ("de", "German")),
            *(("el", "Greek"), ("en", "English"), ("es", "Spanish"), ("fa", "Persian")),
            *(("fi", "Finnish"), ("fil", "Filipino"), ("fr", "French"), ("hi", "Hindi")),
            *(("hu", "Hungarian"), ("id", "Indonesian"), ("it", "Italian"), ("ja", "Japanese")),
            *(("ko", "Korean"), ("mk", "Macedonian"), ("ms", "Malay"), ("nl", "Dutch")),
            *(("pl", "Polish"), ("pt", "Portuguese"), ("ro", "Romanian"), ("ru", "Russian")),
            *(("sv", "Swedish"), ("th", "Thai"), ("tr", "Turkish"), ("vi", "Vietnamese")),
            *(("yue", "Cantonese"), ("zh", "Chinese")),
        ),
        takes_context=True,
        heading="language (.+)",
        heading_end="<asr_text>",
    ),
    "voxtral": Template(
        name="Voxtral",
        audio="[AUDIO]",
        special=("<s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"),
        before_audio="<s>[INST][BEGIN_AUDIO]",
        behind_audio="[/INST]",
        end="[TRANSCRIBE]",
        language="lang:{code}",
        languages=(
            *(("de", "German"), ("en", "English"), ("es", "Spanish"), ("fr", "French")),
            *(("hi", "Hindi"), ("it", "Italian"), ("nl", "Dutch"), ("pt", "Portuguese")),
        ),
        heading="lang:([a-z]{2})",
    ),
}

# Granite-speech 3.3. Its own template has today's date here: texts would change with the day.
_GRANITE_ROLES = Template(
    name="Granite-speech",
    audio="<|audio|>",
    special=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    before_audio=(
        "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
        "Today's Date: December 19, 2024.\nYou are Granite, developed by IBM. You are a helpful AI"
        " assistant<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>"
    ),
    behind_audio="can you transcribe the speech into a written format?<|end_of_text|>\n",
    end="<|start_of_role|>assistant<|end_of_role|>",
)


def template_of(family: str, chat: str) -> Template:
    """The prompt of a model.

    Args:
        family: a key of `TEMPLATES`.
        chat: the chat template in its folder, which is not run: it tells which of Granite's two
            prompts is the model's. Empty if there is none.

    Raises:
        TokenizerError: it is of neither.
    """
    if family != "granite_speech" or "USER:" in chat:
        return TEMPLATES[family]
    if "<|start_of_role|>" in chat:
        return _GRANITE_ROLES
    found = "a chat template of another kind" if chat else "no chat template"
    raise TokenizerError(
        f"has {found} beside it, where Granite-speech has turns of USER and ASSISTANT or of"
        " <|start_of_role|>: put the model's own chat_template.jinja or tokenizer_config.json there"
    )


@dataclasses.dataclass(frozen=True)
class SpeechPrompt:
    """A template in the tokens of a tokenizer.

    Attributes:
        name: of the family.
        audio: the token that stands for a row of audio in other programs.
        begin, before_audio, behind_audio, end: the parts, as of `Template`.
        languages: code and tokens of each.
        takes_context: whether there is a place for a context.
    """

    name: str
    audio: int
    begin: tuple[int, ...]
    before_audio: tuple[int, ...]
    behind_audio: tuple[int, ...]
    end: tuple[int, ...]
    languages: tuple[tuple[str, tuple[int, ...]], ...] = ()
    takes_context: bool = False

    def start_tokens(
        self, language: str = "", task: str = "transcribe", earlier: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """The tokens before a text, `AUDIO` among them.

        Args:
            language: its code; empty leaves it to the model.
            task: "transcribe"; these models translate on other prompts, which are not made here.
            earlier: tokens of the context.

        Raises:
            LanguageError: the model has no such language or task, or takes no context.
        """
        if task != "transcribe":
            raise LanguageError(f"{self.name} is not asked to {task} here: leave --task out")
        if earlier and not self.takes_context:
            raise LanguageError(f"{self.name} takes no prompt: leave it out, or take a Qwen3-ASR")
        known = dict(self.languages)
        if language and not known:
            raise LanguageError(f"{self.name} is not told a language: leave {language!r} out")
        if language and language not in known:
            raise LanguageError(
                f"language {language!r} is none that {self.name} knows: {', '.join(sorted(known))}"
            )
        told = known[language] if language else ()
        first = (*self.begin, *earlier, *self.before_audio, AUDIO)
        return (*first, *self.behind_audio, *told, *self.end)

    def context_in(self, start: Sequence[int]) -> tuple[int, ...]:
        """The tokens of the context that start tokens hold; none of no start tokens."""
        stop = self._audio_part(start) if start else 0
        return tuple(start[len(self.begin) : stop])

    def without_context(self, start: Sequence[int]) -> tuple[int, ...]:
        """Start tokens that hold no context, and tell the rest."""
        return (*self.begin, *start[self._audio_part(start) :])

    def _audio_part(self, start: Sequence[int]) -> int:
        """Where in start tokens the part with the audio begins."""
        return list(start).index(AUDIO) - len(self.before_audio)

    def language_in(self, start: Sequence[int]) -> str:
        """The code of the language that start tokens tell, if they do."""
        behind = tuple(start)[list(start).index(AUDIO) + 1 :]
        told = behind[len(self.behind_audio) : len(behind) - len(self.end)]
        return next((code for code, tokens in self.languages if tokens == told), "")


def make_prompt(
    template: Template, pieces: Sequence[str], encode: Callable[[str], list[int]]
) -> SpeechPrompt:
    """The prompt of a family in the tokens of a tokenizer.

    Args:
        template: of the family.
        pieces: of the tokenizer, by id.
        encode: of plain text.

    Raises:
        TokenizerError: it lacks a special token.
    """
    known = {piece: token for token, piece in enumerate(pieces)}
    for name in (template.audio, *template.special):
        if name not in known:
            raise TokenizerError(
                f"has no token {name}, which every {template.name} has: put the model's own"
                " tokenizer in its place"
            )
    splits = re.compile("|".join(f"({re.escape(name)})" for name in template.special))

    def tokens(text: str) -> tuple[int, ...]:
        parts = [part for part in splits.split(text) if part]
        return tuple(
            token
            for part in parts
            for token in ([known[part]] if part in template.special else encode(part))
        )

    return SpeechPrompt(
        name=template.name,
        audio=known[template.audio],
        begin=tokens(template.begin),
        before_audio=tokens(template.before_audio),
        behind_audio=tokens(template.behind_audio),
        end=tokens(template.end),
        languages=tuple(
            (code, tokens(template.language.format(code=code, name=name)))
            for code, name in template.languages
        ),
        takes_context=template.takes_context,
    )
