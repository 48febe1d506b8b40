"""The sentences of the embedded corpus: a small English grammar of spoken commands.

Words are lower case and spelled as they are said. Where two words sound alike (four and for,
two and to) the words around them tell which is meant: numbers stand where no preposition can.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

SPLITS = ("train", "dev", "test")

# Upper-case names are symbols, everything else is a word. SENTENCE is the start; an alternative
# is drawn evenly, so that one named twice is twice as likely.
RULES: dict[str, tuple[str, ...]] = {
    "SENTENCE": (
        "remind NAME to TASK WHEN",
        "remind me to TASK WHEN",
        "ask NAME to TASK",
        "turn SWITCH the DEVICE in the ROOM",
        "turn SWITCH the DEVICE WHEN",
        "set the DEVICE to NUMBER percent",
        "set a timer for PERIOD",
        "set an alarm CLOCK on DAY",
        "wake me up CLOCK",
        "book a BOOKING for PARTY",
        "will it rain in CITY on DAY",
        "find a train from CITY to CITY",
        "find a train from CITY on DATE",
        "move my EVENT from DAY to DAY",
        "move the EVENT to DATE",
        "buy COUNT THINGS and COUNT THINGS",
        "add COUNT THINGS to the list",
        "tell NAME the EVENT starts CLOCK",
        "send NAME a message about the EVENT",
        "note that NAME owes me MONEY",
        "the number is DIGIT DIGIT DIGIT DIGIT",
        "call the PERSON about the EVENT",
        "NAME was born on DATE",
        "pay NAME MONEY before DAY",
    ),
    "TASK": (
        "call the PERSON",
        "call NAME",
        "meet NAME",
        "visit NAME",
        "buy COUNT THINGS",
        "pay the PERSON",
        "clean the ROOM",
        "open the window",
        "close the door",
    ),
    "WHEN": ("CLOCK", "on DAY", "on DATE", "in COUNT days", "tomorrow PART", "DAY PART"),
    "CLOCK": (
        "at HOUR",
        "at half past HOUR",
        "at quarter past HOUR",
        "at quarter before HOUR",
        "at HOUR MINUTE",
        "at TENS past HOUR",
    ),
    "PERIOD": ("NUMBER minutes", "NUMBER seconds"),
    "DATE": ("MONTH the DAY_OF_MONTH",),
    "PART": ("morning", "afternoon", "evening"),
    "PARTY": ("COUNT people", "NAME and me", "NAME and NAME"),
    "MONEY": ("NUMBER dollars", "COUNT hundred dollars", "NUMBER pounds"),
    "BOOKING": ("table", "room", "taxi", "lesson"),
    "SWITCH": ("on", "off"),
    "DEVICE": ("lamp", "heater", "radio", "television"),
    "ROOM": ("kitchen", "bedroom", "garden", "office"),
    "EVENT": ("concert", "party", "dinner", "lesson", "holiday"),
    "PERSON": ("doctor", "dentist", "plumber", "teacher"),
    "THINGS": ("apples", "lemons", "bottles", "boxes", "eggs"),
    "NAME": (
        *("anna", "peter", "maria", "david", "laura"),
        *("thomas", "emma", "oscar", "victor", "susan"),
    ),
    "CITY": ("london", "berlin", "madrid", "boston", "chicago", "toronto"),
    "DAY": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "MONTH": (
        *("january", "february", "march", "april", "may", "june"),
        *("july", "august", "september", "october", "november", "december"),
    ),
    "DAY_OF_MONTH": (
        *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
        *("tenth", "eleventh", "twelfth", "thirteenth", "twentieth"),
        *("twenty first", "twenty second", "twenty third", "twenty fifth", "twenty sixth"),
    ),
    "HOUR": ("COUNT", "COUNT", "COUNT", "ten", "eleven", "twelve"),
    "MINUTE": ("fifteen", "thirty", "forty five"),
    "TENS": ("ten", "twenty"),
    "DIGIT": ("zero", "COUNT", "COUNT", "COUNT", "COUNT", "COUNT", "one"),
    "COUNT": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "NUMBER": ("TENTH", "TENTH COUNT", "TENTH one", "ten", "eleven", "twelve", "fifteen"),
    "TENTH": ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
}

FEWEST_WORDS, MOST_WORDS = 5, 7


def vocabulary() -> frozenset[str]:
    """Every word that a sentence may hold."""
    words = {word for options in RULES.values() for option in options for word in option.split()}
    return frozenset(words - RULES.keys())


def split_of(text: str) -> str:
    """The only split in which `text` may occur: one sentence in 16 is for dev, one for test.

    A hash of the text decides, so that splits are disjoint whatever their seeds and sizes.
    """
    bucket = hashlib.sha256(text.encode()).digest()[0] % 16
    return {0: "dev", 1: "test"}.get(bucket, "train")


def sentences(split: str, seed: int) -> Iterator[str]:
    """Sentences of one split without end, the same ones for the same seed.

    Those of dev and test are all different. Training sentences come again, as their alternatives
    would otherwise be used up and leave only the richest ones.

    Args:
        split: "train", "dev" or "test".
        seed: any integer.

    Raises:
        ValueError: `split` is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"the embedded corpus has no split {split!r}: choose of {SPLITS}")
    draw = random.Random(f"sentences/{seed}/{split}")
    seen: set[str] = set()
    while True:
        text = " ".join(_expand("SENTENCE", draw))
        fits = FEWEST_WORDS <= len(text.split()) <= MOST_WORDS and split_of(text) == split
        if fits and (split == "train" or text not in seen):
            seen.add(text)
            yield text


def _expand(symbol: str, draw: random.Random) -> Iterator[str]:
    if symbol not in RULES:
        yield symbol
        return
    for part in draw.choice(RULES[symbol]).split():
        yield from _expand(part, draw)
