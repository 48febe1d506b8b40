"""Confidences: what is fitted is found again, and errors are what they should be."""

import numpy as np
import pytest

from mtp_jax.transcription.confidence import (
    Calibration,
    expected_calibration_error,
    fit,
    read_calibration,
    right_words,
    uncalibrated,
)


def overconfident(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Evidence that is too sure, and words that are right as often as half its logit says."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(2, 3, (count, 2))
    truth = 1 / (1 + np.exp(-(0.5 * logits[:, 0] + 0.3 * logits[:, 1] - 0.4)))
    return -np.logaddexp(0, -logits), draw.random(count) < truth


@pytest.mark.parametrize("kind", ["decoder", "ctc"])
def test_calibration_finds_how_often_words_are_right(kind):
    calibration = Calibration({kind: fit(*overconfident(20_000, 0), kind)})
    evidence, right = overconfident(20_000, 1)
    before = expected_calibration_error(uncalibrated(evidence, kind), right)
    after = expected_calibration_error(calibration(evidence, kind), right)
    assert before > 0.06
    assert after < 0.02
    if kind == "decoder":
        np.testing.assert_allclose(calibration.weights[kind], (-0.4, 0.5, 0.3), atol=0.05)


def test_words_that_are_all_right_give_finite_weights():
    evidence, right = overconfident(50, 0)
    weights = fit(evidence, np.ones_like(right), "decoder")
    assert np.isfinite(weights).all()
    assert (Calibration({"decoder": weights})(evidence, "decoder") > 0.9).all()


def test_expected_calibration_error_by_hand():
    confidence = np.array([0.05, 0.05, 0.95, 0.95, 1.0, 0.55])
    right = np.array([False, True, True, True, False, True])
    expected = (2 * abs(0.05 - 0.5) + 3 * abs(2.9 / 3 - 2 / 3) + abs(0.55 - 1)) / 6
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)


def test_right_words_are_those_of_the_best_alignment():
    assert right_words(["a", "b", "c", "d"], ["a", "x", "c", "c", "d"]) in (
        [True, False, True, False, True],
        [True, False, False, True, True],
    )
    assert right_words([], ["a"]) == [False]
    assert right_words(["a"], []) == []


def test_a_file_holds_what_it_should():
    weights = {"decoder": (0.1, 1.0, 2.0)}
    assert read_calibration({"weights": {"decoder": [0.1, 1, 2]}}).weights == weights
    for wrong in (
        [],
        {},
        {"weights": {"ctc": [1, 2]}},
        {"weights": {"ctc": [1, 2, "x"]}},
        {"weights": {"ctc": [1, 2, float("nan")]}},
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_calibration(wrong)
