"""Mistral's ``tekken.json``: a byte-level BPE whose merges follow from the ranks of its tokens.

Ids 0 to S - 1 are special; the token of rank r is S + r. A piece of text that
equals a token becomes that token; in others the neighbours whose union has the lowest rank are
merged, over and over. Source:
mistral-common's ``mistral_common/tokens/tokenizers/tekken.py``.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from mtp_jax.tokenizer.base import TokenizerError

if TYPE_CHECKING:
    import tokenizers

NAME = "tekken.json"
_MOST = 1 << 22  # tokens that a file may name
_REMEDY = "download it again"


def is_one(content: bytes) -> bool:
    """Whether a JSON file is a ``tekken.json``, by what it holds."""
    return b'"token_bytes"' in content


def read(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer that a ``tekken.json`` describes, its special tokens among its vocabulary.

    Raises:
        TokenizerError: it is damaged or something else.
    """
    try:
        special, ranked, pattern = _parts(json.loads(content))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TokenizerError(f"is no {NAME} ({said}): {_REMEDY}") from None
    return _tokenizer(special, ranked, pattern)


def _parts(values: Any) -> tuple[list[str], list[bytes], str]:
    """Names of the special tokens and bytes of the others, each in the order of their ids."""
    config = values["config"]
    size, count = config["default_vocab_size"], config["default_num_special_tokens"]
    if type(size) is not int or type(count) is not int or not 0 < count < size <= _MOST:
        raise ValueError(f"{size!r} tokens, {count!r} of them special")
    special = [f"<SPECIAL_{i}>" for i in range(count)]
    for token in values.get("special_tokens") or ():
        special[_place(token["rank"], count)] = str(token["token_str"])
    ranked: list[bytes | None] = [None] * (size - count)
    for token in values["vocab"]:
        if token["rank"] < len(ranked):
            place = _place(token["rank"], len(ranked))
            try:
                ranked[place] = base64.b64decode(token["token_bytes"], validate=True)
            except binascii.Error:
                raise ValueError(f"the bytes of the token of rank {place}") from None
    whole = [token for token in ranked if token]
    if len(whole) < len(ranked) or len({*whole}) < len(whole) or len({*special}) < count:
        raise ValueError("ranks or names are missing, or occur twice")
    return special, whole, str(config["pattern"])


def _place(rank: Any, count: int) -> int:
    if type(rank) is not int or not 0 <= rank < count:
        raise ValueError(f"rank {rank!r} of {count}")
    return rank


def _tokenizer(special: list[str], ranked: list[bytes], pattern: str) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    spelling = _spelling()
    spelled = ["".join(spelling[byte] for byte in token) for token in ranked]
    vocabulary = {name: i for i, name in enumerate(special)}
    clashes = vocabulary.keys() & {*spelled}
    if clashes:
        raise TokenizerError(f"has two tokens {min(clashes)}: {_REMEDY}")
    vocabulary |= {token: len(special) + rank for rank, token in enumerate(spelled)}
    known = {token: rank for rank, token in enumerate(spelled)}
    merges = []
    for token in spelled:  # by rank: what is merged first comes first
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        found = [pair for pair in pairs if pair[0] in known and pair[1] in known]
        merges += sorted(found, key=lambda pair: (known[pair[0]], known[pair[1]]))
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    try:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # the package raises plain ones
        said = " ".join(str(error).split())[:200]
        raise TokenizerError(f"has a pattern that cannot be used ({said}): {_REMEDY}") from None
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in special])
    return made


def _spelling() -> list[str]:
    """How byte-level tokenizers spell each byte: the printable ones as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]
