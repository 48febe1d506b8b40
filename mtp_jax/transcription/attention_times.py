"""When each token of a text was said, by how the decoder attends to the audio."""

from __future__ import annotations

import numpy as np

from mtp_jax.transcription.alignment import Alignment, align

FRAME_SECONDS = 0.02  # of Whisper's encoder
_LEAST = 1e-3  # about the weight of a frame of 30 s if all were alike: less tells nothing
_SILENT = 35.0  # dB below the loud frames (95th percentile)
_TAIL = 12  # frames at most by which what is not said is attended too early

# Frames by which the alignment heads turn to a word before it begins, on the sentences that
# `bench.word_times` speaks with ``--split=train --seed=1``. Other models are not moved.
_EARLY: dict[tuple[tuple[int, ...], ...], int] = {
    ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)): 2,  # base
    ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)): -5,  # tiny.en
}


def frames_early(alignment_heads: tuple[tuple[int, ...], ...]) -> int:
    """By how many frames these heads turn to a word before it begins; 0 where nobody measured."""
    return _EARLY.get(alignment_heads, 0)


def align_attention(weights: np.ndarray, silent: np.ndarray, early: int = 0) -> Alignment | None:
    """The likeliest path through the frames that comes to all tokens in order.

    A frame belongs to a token with the probability that its weight has among those of all tokens,
    a silent one to none.

    Args:
        weights: float[L, T] of tokens on frames, EOS last: what is behind the last word is its.
        silent: bool[T], where nobody speaks.
        early: frames by which tokens are attended before they are said.

    Returns:
        The path; None where there are fewer frames than tokens.
    """
    tokens, frames = weights.shape
    if not 0 < tokens <= frames:
        return None
    said = np.clip(np.arange(frames) - early, 0, frames - 1)
    share = weights[:, said] + _LEAST
    own = np.log(share / share.sum(axis=0)).T
    none = np.where(silent, 0.0, -np.inf)[:, None]
    return align(np.concatenate([own, none], axis=1), range(tokens))


def until_silence(end: int, silent: np.ndarray) -> int:
    """The frame at which speech ends that has not ended at frame `end` of bool[T] `silent`.

    What is not said, punctuation and EOS, is attended before the word before it has ended: that
    goes on until the next silence, if one is near.
    """
    near = silent[end : end + _TAIL + 1]
    return end + int(near.argmax()) if near.any() else end


def silent_frames(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """bool[T], frames of int16 `audio` that are far less loud than its loud ones.

    Noise that is louder than that hides pauses: then none is silent.
    """
    size = round(FRAME_SECONDS * sample_rate)
    frames = -(-len(audio) // size)
    if not frames:
        return np.zeros(0, bool)
    padded = np.pad(audio.astype(np.float64), (0, frames * size - len(audio)))
    power = np.mean(padded.reshape(frames, size) ** 2, axis=1) + 1.0  # a step of 16 bits
    level = 10 * np.log10(power)
    return level < np.percentile(level, 95) - _SILENT
