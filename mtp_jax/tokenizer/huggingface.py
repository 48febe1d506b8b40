"""Tokenizers of the package `tokenizers`: a LLaMA's ``tokenizer.json``.

The file does not say which of its tokens begin and end a text. Its neighbours do, in the fields
that transformers reads: https://huggingface.co/docs/transformers/main_classes/tokenizer
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_jax.tokenizer.base import Tokenizer, TokenizerError
from mtp_jax.tokenizer.bounds import check_parts, check_pieces
from mtp_jax.untrusted import read_json

if TYPE_CHECKING:
    import tokenizers

CONFIG = "tokenizer_config.json"

# BOS and EOS of LLaMA 1 and 2, LLaMA 3, GPT-2 and SmolLM, and ChatML: of a file that stands alone.
# The EOS that is found first counts; a chat model also has the one of its base model.
WELL_KNOWN = (
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|endoftext|>", "<|endoftext|>"),
    ("<|im_start|>", "<|im_end|>"),
)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer`."""

    file_name = "tokenizer.json"

    def __init__(
        self, model: tokenizers.Tokenizer, eos: int, bos: int | None = None, pad: int | None = None
    ) -> None:
        """Takes a tokenizer and changes it: nothing is cut, padded or parsed for special tokens.

        Args:
            model: the tokenizer.
            eos, bos, pad: ids; EOS stands in for those that are None.

        Raises:
            TokenizerError: an id is not a token, or too many ids are none.
        """
        vocabulary = model.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        if self.vocab_size > 2 * len(vocabulary):
            raise TokenizerError(
                f"has {len(vocabulary)} tokens, but ids up to {self.vocab_size - 1}: it is damaged"
            )
        self.pieces = [""] * self.vocab_size
        check_pieces(vocabulary)
        for piece, token in vocabulary.items():
            self.pieces[token] = piece
        self.eos = eos
        self.bos = eos if bos is None else bos
        self.pad = eos if pad is None else pad
        for name, token in (("BOS", self.bos), ("EOS", self.eos), ("padding", self.pad)):
            if not (0 <= token < self.vocab_size and self.pieces[token]):
                raise TokenizerError(f"has no token {token}, which is to be its {name} token")
        model.no_truncation()
        model.no_padding()
        # Added tokens that are not marked special would be found in texts, and shown.
        model.add_special_tokens([self.pieces[t] for t in (self.bos, self.eos, self.pad)])
        model.encode_special_tokens = True
        self._tokenizer = model
        self._json = model.to_str(pretty=False)
        whole = json.loads(self._json)
        check_parts(whole)
        own = whole["model"]
        self.unknown = own.get("unk_id", vocabulary.get(own.get("unk_token")))
        special = {t for t, added in model.get_added_tokens_decoder().items() if added.special}
        # A Unigram model has them among its pieces, and so makes them of plain text all the same.
        self._never = (special - {self.unknown}) | {self.bos, self.eos, self.pad}

    def _files(self, name: str) -> dict[str, bytes]:
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.pieces[self.bos],
            "eos_token": self.pieces[self.eos],
            "pad_token": self.pieces[self.pad],
            "clean_up_tokenization_spaces": False,
        }
        return {CONFIG: json.dumps(config, indent=1).encode(), name: self._json.encode()}

    def encode(self, text: str) -> list[int]:
        with _as_tokenizer_error():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token for token in ids if token not in self._never]

    def merges(self) -> list[tuple[int, int, int]] | None:
        whole = json.loads(self._json)
        model, splits = whole["model"], json.dumps(whole.get("pre_tokenizer"))
        bytewise = '"ByteLevel"' in splits and '"add_prefix_space": true' not in splits
        # NFC is left out: a text that a model wrote, or that was learnt of one, is so already.
        plain = whole.get("normalizer") in (None, {"type": "NFC"})
        if model["type"] != "BPE" or not (bytewise and plain):
            return None
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        vocabulary: dict[str, int] = model["vocab"]
        return [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in pairs]

    def byte_tokens(self, text: str) -> list[int] | None:
        from tokenizers import pre_tokenizers

        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        spelled = "".join(part for part, _ in split.pre_tokenize_str(text))
        found = (self._tokenizer.token_to_id(byte) for byte in spelled)
        known = [token for token in found if token is not None]
        return known if len(known) == len(spelled) else None

    def _decode(self, ids: list[int]) -> str:
        with _as_tokenizer_error():
            text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.lstrip(" ")  # a byte-level model's words begin with theirs, the first one too


def read(content: bytes, folder: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a ``tokenizer.json``, or of Mistral's ``tekken.json``.

    Args:
        content: of the file.
        folder: where the configs are that name its special tokens: ``tokenizer_config.json``, else
            ``config.json``, else ``generation_config.json``; else `WELL_KNOWN` ones are taken.

    Raises:
        TokenizerError: it is damaged or something else, or its EOS is unknown.
    """
    from mtp_jax.tokenizer import speech_llm, whisper

    model = _parsed(content)
    if family := speech_llm.family_of(folder):
        return speech_llm.read(model, folder, family)
    if whisper.is_whisper(model):
        return whisper.read(model, folder)
    named = _named(folder, model)
    bos, eos = well_known(model)
    eos = named.get("eos", eos)
    if eos is None:
        raise TokenizerError(
            f"does not say which token ends a text: put the model's {CONFIG} beside it"
        )
    return HuggingFaceTokenizer(model, eos, named.get("bos", bos), named.get("pad"))


def _parsed(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of the content of a ``tekken.json`` or of a ``tokenizer.json``.

    Raises:
        TokenizerError: it is neither.
    """
    import tokenizers

    from mtp_jax.tokenizer import tekken

    if tekken.is_one(content):
        return tekken.read(content)
    with _as_tokenizer_error("is not a tokenizer.json"):
        model = tokenizers.Tokenizer.from_str(content.decode())
    if model.decoder is None:
        raise TokenizerError("has no decoder, without which its tokens give no text")
    return model


@contextlib.contextmanager
def _as_tokenizer_error(what: str = "is damaged, or does not do for this text") -> Iterator[None]:
    """Whatever the package raises, as a `TokenizerError`.

    It raises plain Exceptions, and a panic of its Rust code is not even that.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what} ({_line(error)[:200]}): download it again") from None


def well_known(model: tokenizers.Tokenizer) -> tuple[int | None, int | None]:
    """BOS and EOS by the names of the added tokens; None for those that are not found."""
    added = {token.content: i for i, token in model.get_added_tokens_decoder().items()}
    for bos, eos in WELL_KNOWN:
        if eos in added:
            return added.get(bos), added[eos]
    return None, None


def _named(folder: Path, model: tokenizers.Tokenizer) -> dict[str, int]:
    """Ids of "bos", "eos" and "pad", those that the configs in `folder` name."""
    found: dict[str, int] = {}
    names = ("bos", "eos", "pad")
    config = read_config(folder / CONFIG)
    for name in names:
        token = config.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        number = model.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            raise TokenizerError(f"has no token {token!r}, the {name}_token of {CONFIG}")
        found[name] = number
    for file in ("config.json", "generation_config.json"):
        config = {} if len(found) == len(names) else read_config(folder / file)
        for name in names:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if isinstance(number, int) and number >= 0:  # -1 is an old way to say none
                found.setdefault(name, number)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a JSON file; none if there is no such file."""
    try:
        config = read_json(path)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"goes with {path.name}, which cannot be read ({_line(error)}): download it again"
        ) from None
    return config


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
