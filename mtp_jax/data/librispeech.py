"""LibriSpeech as its archives unpack (Panayotov et al., 2015).

``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` holds ``UTTERANCE TEXT`` a line, beside
``UTTERANCE.flac``; at any depth below the given directory, so a subset or all of them.
"""

from __future__ import annotations

from pathlib import Path

from mtp_jax.data.files import Recording
from mtp_jax.data.source import DataError, Problem


def read_tree(root: Path, needs_text: bool = True) -> tuple[list[Recording], list[Problem]]:
    """Recordings below `root`, by name, and what could not be used.

    Args:
        root: of the tree.
        needs_text: whether a recording that no transcript names is of no use; else its text is
            empty.

    Raises:
        DataError: there is no transcript below `root`.
    """
    transcripts = sorted(root.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(
            f"{root} is not a LibriSpeech directory: it holds no SPEAKER/CHAPTER/*.trans.txt"
        )
    recordings: list[Recording] = []
    problems: list[Problem] = []
    for transcript in transcripts:
        chapter = transcript.parent
        untold = {file.stem: file for file in sorted(chapter.glob("*.flac"))}
        try:
            lines = transcript.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(str(transcript), "unreadable transcript", str(error)))
            continue
        for line in filter(str.strip, lines):
            key, _, text = line.strip().partition(" ")
            untold.pop(key, None)
            speaker = key.split("-")[0]
            recordings.append(Recording(key, chapter / f"{key}.flac", text, speaker, "en"))
        for key, file in untold.items():
            if needs_text:
                problems.append(Problem(key, "no text", str(file)))
            else:
                recordings.append(Recording(key, file, "", key.split("-")[0], "en"))
    return recordings, problems
