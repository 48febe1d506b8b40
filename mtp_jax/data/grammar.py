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
    "SENTENCE": ("COMMAND", "COMMAND", "please COMMAND", "COMMAND please"),
    "COMMAND": (
        "remind NAME to TASK WHEN",
        "remind me to TASK WHEN",
        "turn SWITCH the DEVICE in the ROOM",
        "turn SWITCH the DEVICE WHEN",
        "set the DEVICE to NUMBER percent",
        "set a timer for PERIOD",
        "set an alarm CLOCK on DAY",
        "wake me up CLOCK",
        "wake NAME up CLOCK",
        "book a BOOKING for PARTY WHEN",
        "will it rain in CITY on DAY",
        "will there be snow in CITY tomorrow",
        "how warm is it in CITY",
        "find a train from CITY to CITY",
        "find a flight to CITY on DAY",
        "move my EVENT from DAY to DAY",
        "move the EVENT to DATE",
        "buy COUNT THINGS and some DRINK",
        "add some DRINK to the shopping list",
        "add COUNT THINGS to the list",
        "tell NAME the EVENT starts CLOCK",
        "send NAME a message about the EVENT",
        "note that NAME owes me MONEY",
        "call the PERSON about the EVENT",
        "what is NUMBER times COUNT",
        "NAME was born on DATE",
        "pay NAME MONEY before DAY",
        "play some MUSIC music in the ROOM",
        "show me pictures of CITY",
        "open the window in the ROOM",
        "close the door of the ROOM",
    ),
    "TASK": (
        "call the PERSON",
        "call NAME",
        "visit the PERSON",
        "buy COUNT THINGS",
        "pay the PERSON",
        "clean the ROOM",
        "open the window",
        "close the door",
        "water the flowers",
    ),
    "WHEN": ("CLOCK", "on DAY", "on DATE", "tomorrow PART", "DAY PART", "after lunch"),
    "CLOCK": ("at HOUR", "at half past HOUR", "at quarter past HOUR", "at HOUR thirty"),
    "PERIOD": ("NUMBER minutes", "NUMBER seconds"),
    "DATE": ("the DAY_OF_MONTH of MONTH", "MONTH the DAY_OF_MONTH"),
    "PART": ("morning", "afternoon", "evening"),
    "PARTY": ("COUNT people", "NAME and me", "the family"),
    "MONEY": ("NUMBER dollars", "COUNT hundred dollars"),
    "BOOKING": ("table", "room", "taxi", "lesson"),
    "SWITCH": ("on", "off"),
    "DEVICE": ("lamp", "heater", "radio", "television"),
    "ROOM": ("kitchen", "bedroom", "garden", "office"),
    "EVENT": ("concert", "party", "dinner", "holiday"),
    "PERSON": ("doctor", "dentist", "plumber", "teacher"),
    "THINGS": ("apples", "bottles of water", "boxes of tea", "cakes"),
    "DRINK": ("milk", "coffee", "orange juice"),
    "MUSIC": ("classical", "jazz", "dancing"),
    "NAME": ("anna", "peter", "maria", "david", "thomas", "oscar", "victor", "susan"),
    "CITY": ("london", "berlin", "madrid", "boston", "chicago", "toronto"),
    "DAY": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "MONTH": (
        *("january", "february", "march", "april", "may", "june"),
        *("july", "august", "september", "october", "november", "december"),
    ),
    "DAY_OF_MONTH": (
        *("first", "second", "third", "fourth", "fifth", "sixth", "eighth", "ninth"),
        *("tenth", "eleventh", "twelfth", "twentieth", "twenty first", "twenty third"),
    ),
    "HOUR": ("COUNT", "COUNT", "COUNT", "ten", "eleven", "twelve"),
    "COUNT": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "NUMBER": ("TENTH", "TENTH five", "ten", "fifteen"),
    "TENTH": ("twenty", "thirty", "forty", "fifty", "seventy", "ninety"),
}

FEWEST_WORDS, MOST_WORDS = 5, 8


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
        if not FEWEST_WORDS <= len(text.split()) <= MOST_WORDS or split_of(text) != split:
            continue
        if split == "train" or text not in seen:
            seen.add(text)
            yield text


def _expand(symbol: str, draw: random.Random) -> Iterator[str]:
    if symbol not in RULES:
        yield symbol
        return
    for part in draw.choice(RULES[symbol]).split():
        yield from _expand(part, draw)
