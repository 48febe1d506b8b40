"""Whether the parts of a tokenizer.json take bounded time and space, whoever wrote it.

The package `tokenizers` runs what the file describes: regular expressions, which can take
exponential time, and replacements, which can make a word of gigabytes. What published tokenizers
need of both is little, and all that is let through.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from mtp_jax.tokenizer.base import TokenizerError

LONGEST_PIECE = 4096  # characters of a token; the longest of published models have some hundreds
_MOST_PARTS = 64  # of normaliser, pre-tokeniser and decoder each
_MOST_GROWTH = 64  # times that a part may make a text longer
_LONGEST_RULE = 256  # bytes that a character is replaced by
_LONGEST_PATTERN = 20_000  # characters of a regular expression
_MOST_OPEN = 2  # repetitions without bound in one alternative
_MOST_WAYS = 1024  # in which the bounded repetitions and choices of one alternative can be taken
_SMALL = 16  # a repetition up to so often is a bounded one
_GROUPS = ("normalizer", "pre_tokenizer", "decoder")
_REMEDY = "use the tokenizer of another model, if you do not trust who made it"


def check_parts(whole: dict[str, Any]) -> None:
    """Refuses what may take for ever, or more memory than there is.

    Args:
        whole: of a tokenizer.json.

    Raises:
        TokenizerError: a part may.
    """
    for group in _GROUPS:
        parts = list(_parts(whole.get(group)))
        growth = 1
        for part in parts:
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                check_pattern(pattern["Regex"])
            if part.get("type") == "Replace":
                growth *= max(len(str(part.get("content", ""))), 1)
            growth += len(str(part.get("prepend", "")))
            _check_rules(part.get("precompiled_charsmap"))
        if len(parts) > _MOST_PARTS or growth > _MOST_GROWTH:
            raise TokenizerError(
                f"has a {group} that may make any text too long for the memory: {_REMEDY}"
            )


def check_pieces(pieces: Iterable[str]) -> None:
    """Refuses a token of more characters than any text needs: few would fill the memory.

    Raises:
        TokenizerError: there is one.
    """
    longest = max(map(len, pieces), default=0)
    if longest > LONGEST_PIECE:
        raise TokenizerError(f"has a token of {longest} characters: {_REMEDY}")


def check_character_map(content: bytes) -> None:
    """Refuses a map of SentencePiece's that replaces one character by a long text.

    Args:
        content: bytes of a trie, their number in front, and texts that end with NUL.

    Raises:
        TokenizerError: it does, or is damaged.
    """
    size = struct.unpack("<I", content[:4])[0] if len(content) >= 4 else len(content)
    if content and (size > len(content) - 4):
        raise TokenizerError("has a damaged map of characters: download it again")
    if any(len(text) > _LONGEST_RULE for text in content[4 + size :].split(b"\0")):
        raise TokenizerError(f"has a map that makes a long text of one character: {_REMEDY}")


def _check_rules(content: Any) -> None:
    if content is None:
        return
    try:
        found = base64.b64decode(content)
    except (TypeError, ValueError, binascii.Error):
        raise TokenizerError("has a damaged map of characters: download it again") from None
    check_character_map(found)


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part, and those that a sequence of them is made of."""
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            for value in one.values():
                if isinstance(value, list):
                    waiting += value


# One thing that a pattern matches, a quantifier, or what opens and closes groups. A class may hold
# others, two levels deep.
_CLASS = r"\[\^?\]?(?:\\.|\[(?:\\.|\[[^\]]*\]|[^\]\\])*\]|[^\]\\])*\]"
_TOKEN = re.compile(
    rf"(?P<item>\\[pPxo]\{{[^}}]*\}}|\\[^0-9kgRXKG]|\\0|{_CLASS}|[^\\()\[\]*+?{{|]|\{{(?!\d*,?\d*\}}))"
    r"|(?P<open>\((?:\?(?:[imsxWDSPy-]*:|<?[=!]|>|[imsxWDSPy-]+\)|\#[^)]*\)))?)"
    r"|(?P<close>\))|(?P<or>\|)"
    r"|(?P<quantifier>(?:[*+?]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\})[?+]?)",
    re.DOTALL,
)


def check_pattern(pattern: str) -> None:
    """Refuses a regular expression that may take more than cubic time.

    A group that is repeated without bound has to match in one way only, an alternative has at most
    two repetitions without bound, and nothing refers to what was matched before.

    Raises:
        TokenizerError: it may.
    """
    if len(pattern) > _LONGEST_PATTERN or not _is_bounded(pattern):
        raise TokenizerError(
            f"has a regular expression that may take for ever on some texts ({pattern[:60]!r}):"
            f" {_REMEDY}"
        )


def _is_bounded(pattern: str) -> bool:
    # Of each group that is open: repetitions without bound and ways of the alternative that is read
    # now, the most of those before, and how many there were.
    levels = [[0, 1, 0, 0]]
    last: tuple[int, int] | None = None  # the same of what a quantifier would repeat
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if not token:
            return False
        at = token.end()
        if token["item"]:
            last = (0, 1)
        elif token["open"]:
            if token["open"].endswith(")"):  # options or a remark: no group
                continue
            levels.append([0, 1, 0, 0])
            last = None
        elif token["close"]:
            if len(levels) == 1:
                return False
            last = _closed(levels.pop())
            levels[-1][0] += last[0]
            levels[-1][1] *= last[1]
        elif token["or"]:
            level = levels[-1]
            level[2], level[3] = max(level[2], level[0]), level[3] + level[1]
            level[0], level[1] = 0, 1
            last = None
        elif last is None:
            return False
        else:
            low, high = _times(token)
            if high is None or high > _SMALL:
                if last != (0, 1):
                    return False
                levels[-1][0] += 1
                last = (1, 1)
            elif low != high or last != (0, 1):
                if last[0]:
                    return False
                ways = sum(last[1] ** times for times in range(low, high + 1))
                levels[-1][1] = levels[-1][1] // last[1] * ways
                last = (0, ways)
        if levels[-1][0] > _MOST_OPEN or levels[-1][1] > _MOST_WAYS:
            return False
    return len(levels) == 1


def _closed(level: list[int]) -> tuple[int, int]:
    """Repetitions without bound of a group, and the ways in which it matches."""
    return max(level[2], level[0]), level[3] + level[1]


def _times(token: re.Match[str]) -> tuple[int, int | None]:
    """How often a quantifier repeats: at least and at most, None without bound."""
    kind = token["quantifier"][0]
    if kind != "{":
        return (0, 1) if kind == "?" else (0, None)
    low = int(token["low"] or 0)
    if not token["comma"]:
        return low, low
    return low, int(token["high"]) if token["high"] else None
