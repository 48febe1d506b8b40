"""A byte-level BPE that is kept as ``vocab.json`` and ``merges.txt``, as Qwen's is.

How texts are split into words stands in no file: it is known for Qwen2's tokenizer, from its
``tokenizer.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtp_jax.tokenizer.base import TokenizerError
from mtp_jax.untrusted import parse_json, read_bytes, read_json

MERGES = "merges.txt"
CONFIG = "tokenizer_config.json"
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def as_json(content: bytes, folder: Path) -> bytes:
    """The ``tokenizer.json`` of the same tokenizer.

    Args:
        content: of ``vocab.json``.
        folder: where ``merges.txt`` and ``tokenizer_config.json`` are.

    Raises:
        TokenizerError: something of it is missing, damaged or of another tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    try:
        vocabulary = parse_json(content)
        config = read_json(folder / CONFIG)
        lines = read_bytes(folder / MERGES).decode().splitlines()
        added = _added(config)
        kind = config.get("tokenizer_class")
    except OSError as error:
        raise TokenizerError(f"needs {MERGES} and {CONFIG} beside it ({error.strerror})") from None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise TokenizerError(f"is damaged, or {CONFIG} is ({said}): download them again") from None
    if kind not in _CLASSES:
        raise TokenizerError(
            f"is of a {kind}, and without a tokenizer.json only {_CLASSES[0]} is read: put the"
            " model's tokenizer.json beside it"
        )
    kept = (line for line in lines if line and not line.startswith("#version"))
    try:
        merges = [(left, right) for left, right in (line.split(" ") for line in kept)]
        made = Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the package raises plain ones
        said = " ".join(str(error).split())[:200]
        raise TokenizerError(f"does not go with {MERGES} ({said}): download both again") from None
    made.normalizer = normalizers.NFC()
    words = pre.Split(Regex(_WORDS), behavior="isolated")
    made.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    for number, name, special in added:
        token = AddedToken(name, special=special, normalized=False)
        (made.add_special_tokens if special else made.add_tokens)([token])
        if made.token_to_id(name) != number:
            raise TokenizerError(f"has no place {number} for {name}, as {CONFIG} has it")
    text: str = made.to_str()
    return text.encode()


def _added(config: Any) -> list[tuple[int, str, bool]]:
    """Id, name and whether it is special, of each added token, in the order of their ids."""
    listed = config.get("added_tokens_decoder", {}).items()
    return sorted((int(i), str(t["content"]), bool(t.get("special", False))) for i, t in listed)
