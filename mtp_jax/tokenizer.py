"""Text to token ids and back: a SentencePiece model, trained here or loaded (LLaMA's, say)."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

# Ids of the special pieces of a model that is trained here; a loaded one has its own.
PAD, UNK, BOS, EOS = range(4)


class TokenizerError(ValueError):
    """A tokenizer that cannot be trained or read; the message names the culprit and a remedy."""


class Tokenizer:
    """A SentencePiece model.

    Attributes:
        vocab_size: V.
        bos, eos: ids that begin and end a text; `encode` adds neither. A model without BOS
            begins with EOS, as is usual.
        pad: id that fills a row up; a model without one uses EOS (padding is told by lengths,
            never by its id).
        pieces: the V pieces, by id; "▁" stands for a space.
    """

    def __init__(self, model: bytes) -> None:
        """Takes the bytes of a model file; see `load` and `train`.

        Raises:
            TokenizerError: they are not a SentencePiece model, or it has no EOS.
        """
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model or not self._processor.LoadFromSerializedProto(model):
                raise RuntimeError
        except RuntimeError:
            raise TokenizerError("is not a SentencePiece model") from None
        self.vocab_size: int = self._processor.vocab_size()
        self.pieces: list[str] = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]
        self.eos: int = self._processor.eos_id()
        if self.eos < 0:
            raise TokenizerError("has no end-of-sentence piece, which decoding needs to stop")
        self.bos: int = self._or_eos(self._processor.bos_id())
        self.pad: int = self._or_eos(self._processor.pad_id())

    def _or_eos(self, token: int) -> int:
        return token if token >= 0 else self.eos

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a SentencePiece ``tokenizer.model``.

        Raises:
            TokenizerError: the file is missing or is not such a model.
        """
        try:
            return cls(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise TokenizerError(f"tokenizer {path} cannot be read: {error.strerror}") from None
        except TokenizerError as error:
            raise TokenizerError(f"tokenizer {path} {error}") from None

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        path: str | os.PathLike[str],
        vocab_size: int,
        algorithm: str = "unigram",
    ) -> Tokenizer:
        """Trains a model on `texts`, writes it to `path` and returns it.

        The same texts in the same order give the same file. Text is taken as it is (no Unicode
        normalisation, only runs of spaces become one), so that what is decoded can be compared
        with the reference it was trained on; every character of `texts` is a piece.

        Args:
            texts: one sentence each; empty ones are left out.
            path: where the model goes; written whole or not at all.
            vocab_size: V, the four special pieces included.
            algorithm: "unigram" or "bpe".

        Raises:
            TokenizerError: there is no text, V does not suit it, or `path` cannot be written.
        """
        sentences = [text for text in texts if text.strip()]
        if not sentences:
            raise TokenizerError("there is no text to train a tokenizer on")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=algorithm,
                vocab_size=vocab_size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=1 << 16,  # bytes; longer ones would be dropped silently
                num_threads=1,  # more would add up in any order
                pad_id=PAD,
                unk_id=UNK,
                bos_id=BOS,
                eos_id=EOS,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise TokenizerError(_reason(str(error), vocab_size, sentences)) from None
        tokenizer = cls(model.getvalue())
        tokenizer.save(path)
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path`, whole or not at all.

        Raises:
            TokenizerError: it cannot be written.
        """
        path = Path(path).expanduser()
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(self._model)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise TokenizerError(f"tokenizer {path} cannot be written: {error.strerror}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        ids: list[int] = self._processor.encode(text)
        return ids

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
        text: str = self._processor.decode(plain)
        return text


def _reason(said: str, vocab_size: int, sentences: Sequence[str]) -> str:
    characters = len(set("".join(sentences)) - {" "}) + 1  # the space is a piece of its own
    if vocab_size < characters + 4:
        return (
            f"a tokenizer of {vocab_size} pieces cannot hold the text's {characters} characters "
            f"and 4 special pieces: set config.tokenizer.vocab_size to {characters + 4} or more"
        )
    if "too high" in said:
        most = said.rsplit("<=", 1)[-1].strip(" .")
        return (
            f"the text is too small for a tokenizer of {vocab_size} pieces: "
            f"set config.tokenizer.vocab_size to {most} or less"
        )
    return f"SentencePiece cannot train a tokenizer of {vocab_size} pieces: {said}"
