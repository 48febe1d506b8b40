"""SentencePiece models: trained here, or a LLaMA's ``tokenizer.model``."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from mtp_jax.tokenizer.base import Tokenizer, TokenizerError
from mtp_jax.tokenizer.bounds import check_character_map, check_pieces

# Ids of the special pieces of a model that is trained here; a loaded one has its own.
PAD, UNK, BOS, EOS = range(4)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        """Takes the bytes of a model file.

        Raises:
            TokenizerError: they are not a SentencePiece model, or it has no EOS.
        """
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model or not self._processor.LoadFromSerializedProto(model):
                raise RuntimeError
            self.vocab_size = self._processor.vocab_size()
            self.pieces = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]
        except (RuntimeError, UnicodeDecodeError):
            raise TokenizerError("is not a SentencePiece model") from None
        check_pieces(self.pieces)
        check_character_map(_character_map(model))
        self.eos = self._processor.eos_id()
        if self.eos < 0:
            raise TokenizerError("has no end-of-sentence piece, which decoding needs to stop")
        self.bos = self._or_eos(self._processor.bos_id())
        self.pad = self._or_eos(self._processor.pad_id())
        self.unknown = self._processor.unk_id()

    def _or_eos(self, token: int) -> int:
        return token if token >= 0 else self.eos

    def _files(self, name: str) -> dict[str, bytes]:
        return {name: self._model}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text


def _character_map(model: bytes) -> bytes:
    """What characters a model, which was read before, replaces others by."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    content: bytes = proto.ModelProto.FromString(model).normalizer_spec.precompiled_charsmap
    return content


def train(
    texts: Iterable[str], vocab_size: int, algorithm: str, field: str
) -> SentencePieceTokenizer:
    """Trains a model; see `Tokenizer.train`."""
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
        raise TokenizerError(_reason(str(error), vocab_size, field, sentences)) from None
    return SentencePieceTokenizer(model.getvalue())


def _reason(said: str, vocab_size: int, field: str, sentences: Sequence[str]) -> str:
    characters = len(set("".join(sentences)) - {" "}) + 1  # the space is a piece of its own
    if vocab_size < characters + 4:
        return (
            f"a tokenizer of {vocab_size} pieces cannot hold the text's {characters} characters "
            f"and 4 special pieces: set {field} to {characters + 4} or more"
        )
    if "too high" in said:
        most = said.rsplit("<=", 1)[-1].strip(" .")
        return (
            f"the text is too small for a tokenizer of {vocab_size} pieces: "
            f"set {field} to {most} or less"
        )
    return f"SentencePiece cannot train a tokenizer of {vocab_size} pieces: {said}"
