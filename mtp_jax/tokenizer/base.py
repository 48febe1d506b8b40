"""What a tokenizer is to the rest of the project, whatever its file's format."""

from __future__ import annotations

import abc
import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtp_jax.paths import to_path, write_whole
from mtp_jax.untrusted import read_bytes

# Names in a folder, the one to prefer first: a LLaMA's repository often has both, of which
# `tokenizer.json` also holds the tokens added since.
NAMES = ("tokenizer.json", "tekken.json", "tokenizer.model")
VOCABULARY = "vocab.json"  # an older form of the first, with merges.txt beside it
SPACES = "▁Ġ "  # how pieces spell the space before a word
CTC_NAME = "ctc_tokenizer.model"  # beside it, if CTC's labels are not its tokens


class TokenizerError(ValueError):
    """A tokenizer that cannot be trained or read; the message names the culprit and a remedy."""


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        file_name: of the file in a folder that holds such a tokenizer.
        vocab_size: V, added tokens included.
        bos, eos: ids that begin and end a text; `encode` adds neither. A model without BOS
            begins with EOS, as is usual.
        pad: id that fills a row up; a model without one uses EOS (padding is told by lengths,
            never by its id).
        unknown: id that stands for what no piece spells; None if any text can be spelled.
        pieces: the V pieces, by id, as the file spells them (a space is "▁" or "Ġ" in most).
    """

    file_name: str
    vocab_size: int
    bos: int
    eos: int
    pad: int
    unknown: int | None
    pieces: list[str]
    _ctc: Tokenizer | None = None

    @property
    def ctc(self) -> Tokenizer:
        """The tokenizer of the encoder's CTC labels: this one, unless `with_ctc` gave another."""
        return self._ctc or self

    def with_ctc(self, other: Tokenizer) -> Tokenizer:
        """The same with CTC labels of their own: an LLM's vocabulary is too large for them.

        If `other` is the same, they are not of their own.
        """
        both = copy.copy(self)
        both._ctc = None if self._same_as(other) else other
        return both

    def _same_as(self, other: Tokenizer) -> bool:
        return self._files(self.file_name) == other._files(self.file_name)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a tokenizer; its content says which kind it is.

        Args:
            path: a SentencePiece ``tokenizer.model``, a ``tokenizer.json`` or ``tekken.json`` (its
                special tokens are read from the configs beside it), a GGUF file, or a folder with
                one of these. A ``ctc_tokenizer.model`` beside it is that of CTC.

        Raises:
            TokenizerError: there is none, or it cannot be used.
        """
        file = _file(to_path(path))
        tokenizer, ctc = _read(file), file.with_name(CTC_NAME)
        return tokenizer.with_ctc(_read(ctc)) if ctc.exists() and ctc != file else tokenizer

    @staticmethod
    def train(
        texts: Iterable[str],
        path: str | os.PathLike[str],
        vocab_size: int,
        algorithm: str = "unigram",
        field: str = "config.tokenizer.vocab_size",
    ) -> Tokenizer:
        """Trains a SentencePiece model on `texts`, saves it to `path` and returns it.

        The same texts in the same order give the same file. Text is taken as it is (no Unicode
        normalisation, only runs of spaces become one), so that what is decoded can be compared
        with the reference it was trained on; every character of `texts` is a piece.

        Args:
            texts: one sentence each; empty ones are left out.
            path: where the model goes, as in `save`.
            vocab_size: V, the four special pieces included.
            algorithm: "unigram" or "bpe".
            field: what sets V, for the message.

        Raises:
            TokenizerError: there is no text, V does not suit it, or `path` cannot be written.
        """
        from mtp_jax.tokenizer import sentencepiece

        tokenizer = sentencepiece.train(texts, vocab_size, algorithm, field)
        tokenizer.save(path)
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer in its own format, each file whole or not at all.

        Args:
            path: a file, or a folder that exists: there it is called `file_name`.

        Raises:
            TokenizerError: it cannot be written.
        """
        path = to_path(path)
        path = path / self.file_name if path.is_dir() else path
        if self._ctc:  # first: where the file itself is, the tokenizer is whole
            self._ctc.save(path.with_name(CTC_NAME))
        for name, content in self._files(path.name).items():
            _write(path.with_name(name), content)

    @abc.abstractmethod
    def _files(self, name: str) -> dict[str, bytes]:
        """What `save` writes to a file `name` and beside it, the file itself last."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS.

        The name of a special token in `text` is text like any other, so that no transcript can
        end itself.
        """

    def encode_transcript(self, text: str) -> list[int]:
        """Token ids of `text` as the model itself would write it; without BOS and EOS."""
        return self.encode(text)

    def merges(self) -> list[tuple[int, int, int]] | None:
        """Left, right and merged token of each merge of a byte-level BPE, the first one first.

        None of other kinds of tokenizers.
        """
        return None

    def heading(self, ids: Sequence[int]) -> tuple[int, str]:
        """How many tokens of a text are no part of what was said, and the language they tell.

        None but those of models that write more than the text.
        """
        del ids
        return 0, ""

    def byte_tokens(self, text: str) -> list[int] | None:
        """The tokens that a byte-level BPE begins with; None if it has not got them all."""
        del text
        return None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special pieces left out.

        Raises:
            TokenizerError: an id outside [0, V).
        """
        plain = [int(token) for token in ids]
        for token in plain:
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(
                    f"token {token} is outside the vocabulary of {self.vocab_size} pieces"
                )
        return self._decode(plain)

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


def check_fit(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Refuses a tokenizer with ids that an embedding has no row for.

    An embedding may have more rows than there are tokens: many are padded to a round number.
    Whoever decodes with such a model must never emit an id of `tokenizer.vocab_size` or more,
    which `Tokenizer.decode` would refuse.

    Args:
        tokenizer: of the model.
        rows: of the embedding.
        name: of the model, for the message.

    Raises:
        TokenizerError: there are more tokens than rows.
    """
    if tokenizer.vocab_size > rows:
        raise TokenizerError(
            f"a tokenizer of {tokenizer.vocab_size} tokens does not fit {name}, whose embedding "
            f"has {rows} rows: set config.tokenizer.model to the tokenizer that came with it"
        )


def _file(path: Path) -> Path:
    """`path`, or if it is a folder the file in it."""
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    if (path / VOCABULARY).is_file() and (path / "merges.txt").is_file():
        return path / VOCABULARY
    models = sorted(path.glob("*.gguf"))
    if len(models) == 1:
        return models[0]
    found = f"{len(models)} GGUF files" if models else "no tokenizer.model and no GGUF file"
    raise TokenizerError(f"{path} has no tokenizer.json, and {found}: name the file itself")


def _read(file: Path) -> Tokenizer:
    from mtp_jax.tokenizer import gguf, huggingface, sentencepiece, vocabulary_files

    try:
        if _start(file).startswith(b"GGUF"):  # gigabytes, and mapped
            return gguf.read(file)
        content = read_bytes(file)
        start = content[:64]
        if file.name == VOCABULARY:
            content = vocabulary_files.as_json(content, file.parent)
        if file.suffix == ".json" or start.lstrip().startswith(b"{"):
            return huggingface.read(content, file.parent)
        return sentencepiece.SentencePieceTokenizer(content)
    except OSError as error:
        raise TokenizerError(f"tokenizer {file} cannot be read: {error.strerror}") from None
    except TokenizerError as error:
        raise TokenizerError(f"tokenizer {file} {error}") from None


def _start(file: Path) -> bytes:
    """The first bytes, if it is a file that has some."""
    if not file.is_file():
        return b""
    with file.open("rb") as opened:
        return opened.read(4)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise TokenizerError(f"tokenizer {path} cannot be written: {error.strerror}") from None
