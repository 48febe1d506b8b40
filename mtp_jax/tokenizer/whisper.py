"""The tokenizer of a Whisper: a byte-level BPE with languages, tasks and times among its tokens.

Which tokens a text may not hold is told by ``generation_config.json`` (transformers), or by
``config.json`` (CTranslate2, and older files of transformers).
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_jax.tokenizer.base import TokenizerError
from mtp_jax.tokenizer.huggingface import HuggingFaceTokenizer, read_config
from mtp_jax.tokenizer.whisper_merges import with_lost_merges
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger("mtp_jax")

START = "<|startoftranscript|>"
RULES = "generation_config.json"
_TIMES = 1501  # 0.00 to 30.00 s in steps of 0.02 s
_LATEST = "max_initial_timestamp_index"
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_SUPPRESSED = (("suppress_tokens", "begin_suppress_tokens"), ("suppress_ids", "suppress_ids_begin"))


class WhisperTokenizer(HuggingFaceTokenizer):
    """A `HuggingFaceTokenizer` that knows what its special tokens mean.

    Attributes:
        special: them.
    """

    def __init__(self, model: tokenizers.Tokenizer, rules: dict[str, Any]) -> None:
        """Takes a tokenizer and adds the tokens of times, which many files leave out.

        Args:
            model: the tokenizer.
            rules: fields of the configs beside it.

        Raises:
            TokenizerError: it is no Whisper's.
        """

        def token(*names: str) -> int:
            found = (model.token_to_id(name) for name in names)
            number = next((n for n in found if n is not None), None)
            if number is None:
                raise TokenizerError(f"has no token {names[0]}, which every Whisper has")
            return int(number)

        no_timestamps = token("<|notimestamps|>")
        times = [f"<|{i / 50:.2f}|>" for i in range(_TIMES)]
        model.add_special_tokens(times)
        if model.token_to_id(times[-1]) != no_timestamps + _TIMES:
            raise TokenizerError("has other tokens where a Whisper has those of times")
        eos = token("<|endoftext|>")
        super().__init__(model, eos)
        start = token(START)
        known = rules.get("is_multilingual")
        # English-only models have the tokens of languages too, and one token less in all.
        multilingual = eos > 50256 if known is None else bool(known)
        tasks = (token("<|transcribe|>"), token("<|translate|>")) if multilingual else (-1, -1)
        languages = [
            (match[1], number)
            for number, piece in enumerate(self.pieces[: no_timestamps + 1])
            if (match := re.fullmatch(r"<\|([a-z]{2,3})\|>", piece)) and number > start
        ]
        self._rules: dict[str, Any] = {
            name: _tokens(rules, (name, other), self.vocab_size)
            for name, other in zip(*_SUPPRESSED, strict=True)
        }
        self._rules["is_multilingual"] = multilingual
        self._rules[_LATEST] = _latest_beginning(rules)
        self.special = WhisperTokens(
            start=start,
            previous=token("<|startofprev|>"),
            no_timestamps=no_timestamps,
            no_speech=token("<|nospeech|>", "<|nocaptions|>"),
            languages=tuple(languages) if multilingual else (),
            transcribe=tasks[0],
            translate=tasks[1],
            suppressed=tuple(self._rules[_SUPPRESSED[0][0]]),
            suppressed_first=tuple(self._rules[_SUPPRESSED[0][1]]),
            latest_beginning=self._rules[_LATEST],
        )

    def encode_transcript(self, text: str) -> list[int]:
        """As of every tokenizer: a text begins with a space, unless its script has none."""
        return self.encode(f" {text}" if text and not _UNSPACED.match(text) else text)

    def _files(self, name: str) -> dict[str, bytes]:
        rules = json.dumps(self._rules | {"eos_token_id": self.eos}, indent=1).encode()
        return {RULES: rules, **super()._files(name)}


def is_whisper(model: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer is that of a Whisper."""
    return model.token_to_id(START) is not None


def read(model: tokenizers.Tokenizer, folder: Path) -> WhisperTokenizer:
    """The tokenizer of a Whisper, with the rules in `folder`.

    Raises:
        TokenizerError: something of it is missing or damaged.
    """
    rules = read_config(folder / "config.json") | read_config(folder / RULES)
    if not any(name in rules for names in _SUPPRESSED for name in names):
        log.warning(
            "%s has no %s, which says what tokens a text may not hold: it may hold all of them",
            *(folder, RULES),
        )
    return WhisperTokenizer(with_lost_merges(model), rules)


def _tokens(rules: dict[str, Any], names: tuple[str, ...], size: int) -> list[int]:
    """The token ids of the first field that is there; none if it is missing."""
    found: Any = next((rules[name] for name in names if rules.get(name) is not None), [])
    if not isinstance(found, list) or not all(
        type(token) is int and -1 <= token < size for token in found
    ):
        raise TokenizerError(f"goes with a {names[0]} that is no list of its tokens")
    return [token for token in found if token >= 0]


def _latest_beginning(rules: dict[str, Any]) -> int:
    """The last time that a text may begin at; 1.00 s, as in OpenAI's code, if none is named."""
    found = rules.get(_LATEST)
    if found is None:
        return 50
    if type(found) is not int or not 0 <= found < _TIMES:
        raise TokenizerError(f"goes with a {_LATEST} that is none of its {_TIMES} times")
    return found
