"""The tokenizer inside a GGUF file.

Fields: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer; what the names of
pre-tokenizers stand for: llama.cpp's src/llama-vocab.cpp, and the ``tokenizer.json`` of the models
that llama.cpp's convert_hf_to_gguf.py knows by these names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_jax.tokenizer.base import Tokenizer, TokenizerError
from mtp_jax.tokenizer.huggingface import HuggingFaceTokenizer, well_known
from mtp_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from mtp_jax.untrusted import open_gguf

if TYPE_CHECKING:
    import tokenizers

REMEDY = "set config.tokenizer.model to the tokenizer.json or tokenizer.model that came with it"

# LLaMA 3's way to split a text into words, from its tokenizer.json.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Types of tokens; SentencePiece numbers them alike.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4


def read(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        TokenizerError: the file is damaged, or holds no tokenizer of a kind that is known here.
    """
    try:
        reader = open_gguf(path)
        start = "tokenizer.ggml."
        fields = {
            name.removeprefix(start): field.contents()
            for name, field in reader.fields.items()
            if name.startswith(start)
        }
    except OSError:
        raise
    except Exception as error:  # it meets the end of a file in many ways
        raise TokenizerError(f"is damaged: {' '.join(str(error).split())}") from None
    kind = fields.get("model")
    if kind not in KINDS:
        has = f"a tokenizer of the kind {kind!r}" if kind else "no tokenizer"
        raise TokenizerError(f"has {has}, not one of {', '.join(KINDS)}: {REMEDY}")
    try:
        return KINDS[kind](fields)
    except TokenizerError:
        raise
    except Exception as error:  # of fields that are missing, or not what they should be
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise TokenizerError(f"has a damaged tokenizer ({said}): {REMEDY}") from None


def byte_level(fields: dict[str, Any]) -> HuggingFaceTokenizer:
    """A byte-level BPE, GGUF's "gpt2"."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    pre = fields.get("pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"splits texts the way of {pre!r}, not one of {', '.join(PRE_TOKENIZERS)}: {REMEDY}"
        )
    tokens: list[str] = fields["tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise TokenizerError(f"names two of its tokens alike: {REMEDY}")
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    # LLaMA 3's words that are tokens are taken whole, although no merges may lead to them.
    model = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in LLAMA_3_NAMES))
    model.pre_tokenizer = PRE_TOKENIZERS[pre]()
    model.decoder = decoders.ByteLevel()
    types = fields.get("token_type", [])
    for add, kind in (
        (model.add_special_tokens, CONTROL),
        (model.add_tokens, USER_DEFINED),
    ):
        add([AddedToken(tokens[i], normalized=False) for i, k in enumerate(types) if k == kind])
    bos, eos = well_known(model)
    eos = fields.get("eos_token_id", eos)
    if eos is None:
        raise TokenizerError(f"does not say which token ends a text: {REMEDY}")
    return HuggingFaceTokenizer(
        model, eos, fields.get("bos_token_id", bos), fields.get("padding_token_id")
    )


def sentence_piece(fields: dict[str, Any]) -> SentencePieceTokenizer:
    """A BPE of SentencePiece, GGUF's "llama": the scores are the model's, so it is made again."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    pieces, scores, types = (fields[name] for name in ("tokens", "scores", "token_type"))
    model = proto.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type = proto.TrainerSpec.BPE
    spec.vocab_size = len(pieces)
    spec.byte_fallback = "<0x00>" in pieces
    spec.unk_id = types.index(UNKNOWN)
    spec.unk_piece = pieces[spec.unk_id]
    for name, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = fields.get(f"{field}_token_id", -1)
        setattr(spec, f"{name}_id", token)
        if token >= 0:
            setattr(spec, f"{name}_piece", pieces[token])
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = fields.get("add_space_prefix", True)
    normalizer.remove_extra_whitespaces = fields.get("remove_extra_whitespaces", False)
    normalizer.escape_whitespaces = True
    return SentencePieceTokenizer(model.SerializeToString())


def _gpt_2() -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt_2()])


def _llama_3() -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, rest])


LLAMA_3_NAMES = ("llama-bpe", "llama3", "llama-v3")
PRE_TOKENIZERS: dict[str, Callable[[], tokenizers.pre_tokenizers.PreTokenizer]] = {
    # Older files do not name theirs: GPT-2's is what transformers takes for them.
    **dict.fromkeys(("default", "gpt-2"), _gpt_2),
    "smollm": _smollm,
    **dict.fromkeys(LLAMA_3_NAMES, _llama_3),
}
KINDS: dict[str, Callable[[dict[str, Any]], Tokenizer]] = {
    "gpt2": byte_level,
    "llama": sentence_piece,
}
