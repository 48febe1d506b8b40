"""How sure a word is: from what decoder and encoder say of it to the chance that it is right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("decoder", "ctc")  # who chose the words
BINS = 10
_EDGE = 1e-6  # probabilities keep so far from 0 and 1
_DECAY = 1e-3  # pulls weights towards 0, so that a dev set without errors gives finite ones


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Logistic regression on the logits of the evidence: Platt scaling with two inputs.

    (Platt, "Probabilistic outputs for support vector machines", 1999.)

    Attributes:
        weights: by kind, those of 1 and of the logits of ``exp`` of each `Segment.evidence`.
    """

    weights: Mapping[str, tuple[float, float, float]]

    def __call__(self, evidence: np.ndarray, kind: str) -> np.ndarray:
        """float[W] confidences of float[W, 2] `evidence`; uncalibrated if `kind` is unknown."""
        if kind not in self.weights:
            return uncalibrated(evidence, kind)
        return _sigmoid(_inputs(evidence, kind) @ np.array(self.weights[kind]))


def uncalibrated(evidence: np.ndarray, kind: str) -> np.ndarray:
    """float[W] probabilities of each word's tokens, or, without a decoder, of its CTC path."""
    found: np.ndarray = np.exp(evidence[:, KINDS.index(kind)])
    return found


def fit(evidence: np.ndarray, right: np.ndarray, kind: str) -> tuple[float, float, float]:
    """Weights under which `right` is likeliest.

    Args:
        evidence: float[W, 2]; `right`: bool[W], whether each word was.
        kind: one of `KINDS`.
    """
    from scipy.optimize import minimize

    x, y = _inputs(evidence, kind), right.astype(float)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        value = np.mean(np.logaddexp(0, z) - y * z) + _DECAY * float(w[1:] @ w[1:])
        slope = x.T @ (_sigmoid(z) - y) / len(y)
        slope[1:] += 2 * _DECAY * w[1:]
        return float(value), slope

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return float(found[0]), float(found[1]), float(found[2])


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """How far confidence and accuracy are apart, averaged over words, in `BINS` equal bins.

    (Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.)
    """
    return sum(
        share * abs(mean - accuracy) for share, mean, accuracy in reliability(confidence, right)
    )


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float]]:
    """Share of words, mean confidence and accuracy of each bin that holds any."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (float(np.mean(mine)), float(confidence[mine].mean()), float(right[mine].mean()))
        for mine in (place == b for b in range(BINS))
        if mine.any()
    ]


def right_words(reference: Sequence[str], words: Sequence[str]) -> list[bool]:
    """Whether each of `words` is right, by the alignment with the fewest word errors."""
    import jiwer

    if not words or not reference:
        return [False] * len(words)
    right = [False] * len(words)
    # Words as characters of an alphabet of their own: nothing is normalised or split.
    names = {word: f"w{i}" for i, word in enumerate({*reference, *words})}
    said, heard = (" ".join(names[word] for word in side) for side in (reference, words))
    for chunk in jiwer.process_words(said, heard).alignments[0]:
        if chunk.type == "equal":
            for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                right[i] = True
    return right


def _inputs(evidence: np.ndarray, kind: str) -> np.ndarray:
    p = np.clip(np.exp(evidence), _EDGE, 1 - _EDGE)
    x = np.log(p / (1 - p))
    if kind == "ctc":
        x[:, 0] = 0  # there is no decoder to ask
    return np.column_stack([np.ones(len(x)), x])


def _sigmoid(z: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    return found


def read_calibration(values: object) -> Calibration:
    """The calibration that a file holds.

    Raises:
        ValueError, KeyError, TypeError: it holds something else.
    """
    if not isinstance(values, dict):
        raise TypeError("it holds no object")
    weights = {}
    for kind in KINDS:
        if kind in values["weights"]:
            bias, first, second = (float(w) for w in values["weights"][kind])
            if not all(map(math.isfinite, (bias, first, second))):
                raise ValueError("a weight is not finite")
            weights[kind] = (bias, first, second)
    return Calibration(weights)
