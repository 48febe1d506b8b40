"""What the CTC head of Granite-speech's encoder spells: characters, by their number.

No file of such a folder says so. `transformers` documents that the head learns characters, and
takes output 0 of the same head for the blank where a relative of the model needs it
(``modeling_granite_speech_nar.py``). That output c is the character of number c follows from this
and from the sizes: 256 outputs in 3.3, which writes English, French, German, Spanish and
Portuguese, and 92 more in 4.x, which writes Japanese too. What those are is not known. A draft that
spells something else costs calls and changes no text, so much may be taken for likely there; times
of words and texts of its own may not.
"""

from __future__ import annotations

_CHARACTERS = 256


def ctc_characters(outputs: int) -> list[str]:
    """What each output behind the blank adds to a text; nothing where that is not known.

    Args:
        outputs: of the head; those of the first revisions, 42, spell what is not known.
    """
    if outputs < _CHARACTERS:
        return []
    return [chr(number) if number < _CHARACTERS else "" for number in range(1, outputs)]
