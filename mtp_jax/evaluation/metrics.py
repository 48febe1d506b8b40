"""Word and character error rates, and how sure a difference between two systems is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
import scipy.special


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Edit errors over a data set.

    Attributes:
        errors: substitutions, deletions and insertions of each utterance.
        units: reference words (or characters) of each utterance.
    """

    errors: tuple[int, ...]
    units: tuple[int, ...]

    @property
    def percent(self) -> float:
        """Corpus-level rate, per cent; inserted units of empty references count as errors."""
        return 100.0 * sum(self.errors) / max(sum(self.units), 1)


@functools.cache
def normalizer(name: str) -> Callable[[str], str]:
    """What both sides go through before they are compared.

    Args:
        name: "english" (Whisper's English normaliser, as leaderboards use), "basic" (Whisper's for
            other languages) or "none" (white space only).
    """
    if name == "none":
        return lambda text: " ".join(text.split())
    # Imported late: its tables take a second to load.
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if name == "english" else BasicTextNormalizer()


def _rate(process: Callable[..., object], pairs: Sequence[tuple[str, str]]) -> ErrorRate:
    """Counts errors pair by pair; jiwer refuses empty references, so those are counted here."""
    errors, units = [], []
    words = process is jiwer.process_words
    for reference, hypothesis in pairs:
        if not reference:
            errors.append(len(hypothesis.split()) if words else len(hypothesis))
            units.append(0)
            continue
        out = process(reference, hypothesis)
        wrong = out.substitutions + out.deletions  # type: ignore[attr-defined]
        errors.append(wrong + out.insertions)  # type: ignore[attr-defined]
        units.append(wrong + out.hits)  # type: ignore[attr-defined]
    return ErrorRate(tuple(errors), tuple(units))


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalize: str = "english"
) -> ErrorRate:
    """Word errors of each utterance after normalisation of both sides."""
    return _rate(jiwer.process_words, _normalized(references, hypotheses, normalize))


def character_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalize: str = "english"
) -> ErrorRate:
    """Character errors of each utterance after normalisation of both sides."""
    return _rate(jiwer.process_characters, _normalized(references, hypotheses, normalize))


def _normalized(
    references: Sequence[str], hypotheses: Sequence[str], name: str
) -> list[tuple[str, str]]:
    clean = normalizer(name)
    pairs = zip(references, hypotheses, strict=True)
    return [
        (clean(reference).strip(), clean(hypothesis).strip()) for reference, hypothesis in pairs
    ]


def bootstrap_difference(
    ours: ErrorRate, theirs: ErrorRate, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of ``ours.percent - theirs.percent`` by a paired bootstrap over utterances.

    (Bisani and Ney, 2004.) Both must be of the same utterances, in the same order.
    """
    if ours.units != theirs.units:
        raise ValueError("a paired bootstrap needs the same references on both sides")
    rng = np.random.default_rng(seed)
    change = np.array(ours.errors) - np.array(theirs.errors)
    units = np.array(ours.units)
    differences = []
    for _ in range(0, samples, 1000):  # in parts: samples x utterances would not fit in memory
        drawn = rng.integers(0, len(units), (1000, len(units)))
        differences.append(100 * change[drawn].sum(1) / np.maximum(units[drawn].sum(1), 1))
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return float(low), float(high)


def upper_increase(ours: ErrorRate, theirs: ErrorRate, largest: float, confidence: float) -> float:
    """Upper confidence limit of ``ours.percent - theirs.percent``, also where errors are rare.

    A bootstrap draws only from what was seen, so that its limit is 0 where nothing was lost yet.
    Here utterances that lose or gain words are rare events with sizes: losses have the gamma limit
    of a weighted sum of Poisson counts (Fay and Feuer, 1997), in which one more loss might have
    been seen; gains its lower limit; and both are joined by their distances from the estimates
    (Zou and Donner, 2008). Where nothing is lost in N utterances, that is 3 losses in N at 95 %.

    Args:
        ours, theirs: of the same utterances, in the same order.
        largest: words that one utterance may lose; more are assumed where more were seen.
        confidence: of the limit, within (0, 1).

    Returns:
        Per cent of the reference words.
    """
    if ours.units != theirs.units:
        raise ValueError("a paired difference needs the same references on both sides")
    change = np.array(ours.errors, float) - np.array(theirs.errors, float)
    lost, gained = np.maximum(change, 0), np.maximum(-change, 0)
    size = max(largest, lost.max(initial=0))
    most = _gamma_limit(lost.sum() + size, np.square(lost).sum() + size**2, confidence)
    least = _gamma_limit(gained.sum(), np.square(gained).sum(), 1 - confidence)
    distance = np.hypot(most - lost.sum(), gained.sum() - least)
    return float(100 * (change.sum() + distance) / max(sum(ours.units), 1))


def _gamma_limit(mean: float, variance: float, quantile: float) -> float:
    """Quantile of the gamma distribution with these moments; 0 where it is all at 0."""
    if not variance:
        return 0.0
    scale = variance / mean
    return float(scale * scipy.special.gammaincinv(mean / scale, quantile))
