"""The recordings in a folder, known by their suffixes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# What is taken of a folder. Files of these that hold no audio get a sentence each.
SUFFIXES = {
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd"),
    *(".caf", ".w64", ".rf64", ".wv", ".mp2", ".sph", ".nist", ".voc", ".spx", ".amr", ".gsm"),
    *(".mpga", ".mpa", ".m4a", ".m4b", ".m4r", ".aac", ".adts", ".ac3", ".ape", ".tta", ".wma"),
    *(".mka", ".weba", ".f4a", ".ra", ".rm"),
    # Pictures beside the sound: their sound is taken.
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".3gp", ".3g2", ".mpeg", ".mpg", ".ts", ".mts"),
    *(".avi", ".flv", ".wmv", ".ogv", ".asf", ".vob"),
}


class AudioFolder:
    """A walk through a folder.

    Attributes:
        others: names of files without the suffix of a recording.
        unreadable: a sentence for each folder that cannot be read, and link that leads nowhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.others: list[str] = []
        self.unreadable: list[str] = []

    def files(self) -> Iterator[Path]:
        """Recordings, sorted within each folder; what links lead to comes last."""
        entered: set[tuple[int, int]] = set()
        waiting, linked = [self.root], list[Path]()
        while waiting or linked:
            if not waiting:
                waiting, linked = linked[::-1], []
            folder = waiting.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
                paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            except OSError as error:
                self.unreadable.append(f"{shown(folder)} cannot be read ({error.strerror})")
                continue
            folders: list[Path] = []
            for path in paths:
                if path.is_dir():
                    (linked if path.is_symlink() else folders).append(path)
                elif path.suffix.lower() not in SUFFIXES:
                    self.others.append(shown(path.relative_to(self.root)))
                elif path.is_symlink() and not path.exists():
                    self.unreadable.append(f"{shown(path)} is a link that leads nowhere")
                else:
                    yield path
            waiting += reversed(folders)


def shown(path: str | os.PathLike[str]) -> str:
    """A path on one line, whatever its bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
