"""Forced alignment: when each label of a text was said, by CTC or other scores of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NEVER = -np.inf


class Alignment(NamedTuple):
    """The likeliest path through the frames that spells the labels.

    Attributes:
        first, last: int[N] frames in which each label is heard first and last.
        log_probs: float64[N], sum over each label's frames.
        score: log-probability of the whole path, in nats.
    """

    first: np.ndarray
    last: np.ndarray
    log_probs: np.ndarray
    score: float


def align(log_probs: np.ndarray, labels: Sequence[int]) -> Alignment | None:
    """Viterbi alignment of `labels`, with blanks anywhere and one between two that are alike.

    (Graves et al., "Connectionist temporal classification", ICML 2006, section 4.1, with the
    maximum in place of the sum.)

    Args:
        log_probs: float[T, V + 1], log-probabilities; the last class is the blank.
        labels: N of them, each within [0, V).

    Returns:
        The path; None where there are too few frames for any.
    """
    path = _path(log_probs, labels)
    if path is None:
        return None
    states, score = path
    count = len(labels)
    mine = states[:, None] == 2 * np.arange(count) + 1
    emitted = log_probs[:, np.asarray(labels, int)] if count else np.zeros((len(states), 0))
    return Alignment(
        first=mine.argmax(axis=0) if count else np.zeros(0, int),
        last=len(states) - 1 - mine[::-1].argmax(axis=0) if count else np.zeros(0, int),
        log_probs=np.where(mine, emitted, 0.0).sum(axis=0, dtype=np.float64),
        score=score,
    )


def _path(log_probs: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, float] | None:
    """int[T] states of the best path, 2 n + 1 for label n and even for blanks, and its score."""
    frames, blank = len(log_probs), log_probs.shape[1] - 1
    spelled = np.full(2 * len(labels) + 1, blank)
    spelled[1::2] = labels
    if not frames:
        return None if len(labels) else (np.zeros(0, int), 0.0)
    emitted = log_probs[:, spelled].astype(np.float64)  # [T, S]
    skips = np.zeros(len(spelled), bool)  # into a label, over the blank before it
    skips[3::2] = spelled[3::2] != spelled[1:-2:2]
    score = np.full(len(spelled), _NEVER)
    score[:2] = emitted[0, :2]
    came = np.zeros((frames, len(spelled)), np.int8)  # by how many states
    options = np.full((3, len(spelled)), _NEVER)
    for frame in range(1, frames):
        options[0] = score
        options[1, 1:] = score[:-1]
        options[2, 2:] = np.where(skips[2:], score[:-2], _NEVER)
        came[frame] = options.argmax(axis=0)
        score = options.max(axis=0) + emitted[frame]
    last = len(spelled) - 1
    if last and score[last - 1] >= score[last]:
        last -= 1
    if score[last] == _NEVER:
        return None
    states, total = np.empty(frames, int), float(score[last])
    for frame in range(frames - 1, -1, -1):
        states[frame] = last
        last -= int(came[frame, last])
    return states, total
