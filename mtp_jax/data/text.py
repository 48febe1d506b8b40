"""Texts of sources that differ in case and punctuation, made alike."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """`text` in lower case, without punctuation and symbols, single spaces between words.

    Letters of any script, digits and apostrophes inside words stay.

    >>> plain("“It’s 5 O'CLOCK,” she said -- well-nigh.")
    "it's 5 o'clock she said well nigh"
    """
    text = unicodedata.normalize("NFC", text).replace("’", "'").lower()
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (w.strip("'") for w in kept.split()) if word)
