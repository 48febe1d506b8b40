"""Live captions in a shell: growing on a terminal, a line a stretch in a pipe."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

from mtp_jax.transcription.live_events import Caption, LiveEvent, joined

_DIM, _PLAIN, _CLEAR = "\x1b[2m", "\x1b[0m", "\r\x1b[J"


class Captions:
    """Shows events.

    On a terminal the stretch that is being spoken is shown as far as it is heard, and what of it
    may change is dim. Elsewhere each stretch is written as a line, once it is settled.

    Args:
        out: where to.
        is_terminal: whether it moves back.
    """

    def __init__(self, out: TextIO, is_terminal: bool) -> None:
        self._out, self._is_terminal = out, is_terminal
        self._lines = 0  # of the caption that grows, above the last

    def show(self, event: LiveEvent) -> None:
        """Shows an event, if there is something to be seen of it."""
        if not isinstance(event, Caption):
            return
        if event.final:
            said = f"{_shown(joined(event.committed))}\n" if event.committed else ""
            self._out.write(self._back() + said)
            self._lines = 0
        elif self._is_terminal:
            width = max(shutil.get_terminal_size().columns, 8)
            committed, open_ = _shown(joined(event.committed)), _shown(joined(event.open))
            gap = " " if committed and open_ else ""
            back = self._back()
            self._lines = max(_columns(committed + gap + open_) - 1, 0) // width
            self._out.write(f"{back}{committed}{gap}{_DIM}{open_}{_PLAIN}")
        self._out.flush()

    def _back(self) -> str:
        """What takes the caption away that grows."""
        if not self._is_terminal:
            return ""
        return (f"\x1b[{self._lines}A" if self._lines else "") + _CLEAR


def _shown(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def _columns(text: str) -> int:
    """That a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
