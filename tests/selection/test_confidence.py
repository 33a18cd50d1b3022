"""Confidence histograms: against naive loops and known answers."""

import math

import numpy as np
import pytest

from udaseg.selection.temperature import BINS, ConfidenceHistogram

NONE = 255


def counted(confidence, labels, truth):
    calibration = ConfidenceHistogram()
    calibration.update(
        np.array([confidence], np.float32),
        np.array([labels], np.uint8),
        None if truth is None else np.array([truth], np.uint8),
    )
    return calibration


def test_counts_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    confidence = rng.random((9, 11), dtype=np.float32)
    labels, truth = rng.integers(0, 3, (2, 9, 11)).astype(np.uint8)
    truth[:2] = NONE
    calibration = ConfidenceHistogram()
    calibration.update(confidence[:4], labels[:4], truth[:4])
    calibration.update(confidence[4:], labels[4:], truth[4:])
    pixels, known, right, sure = [0] * BINS, [0] * BINS, [0] * BINS, [0.0] * BINS
    for c, label, t in zip(confidence.flat, labels.flat, truth.flat, strict=True):
        place = min(int(c * BINS), BINS - 1)
        pixels[place] += 1
        if t != NONE:
            known[place] += 1
            right[place] += int(label == t)
            sure[place] += float(c)
    assert calibration.pixels.tolist() == pixels
    assert calibration.labelled.tolist() == known
    assert calibration.correct.tolist() == right
    np.testing.assert_allclose(calibration.confidence, sure)
    gaps = [
        abs(sure[k] / known[k] - right[k] / known[k]) * known[k] for k in range(BINS) if known[k]
    ]
    assert calibration.expected_calibration_error() == pytest.approx(sum(gaps) / sum(known))


def test_sure_and_right_has_no_error_and_sure_and_wrong_all_of_it():
    assert counted([1, 1], [0, 1], [0, 1]).expected_calibration_error() == 0
    assert counted([1, 1], [0, 1], [1, 0]).expected_calibration_error() == 1
    assert counted([0.5, 0.5], [0, 1], [0, 0]).expected_calibration_error() == pytest.approx(0)


def test_without_truth_only_the_histogram_is_counted():
    calibration = counted([0.2, 0.99], [0, 1], None)
    assert calibration.pixels.sum() == 2
    assert math.isnan(calibration.expected_calibration_error())
    assert math.isnan(counted([0.2], [0], [NONE]).expected_calibration_error())


def test_confidence_at_the_borders_and_beyond_stays_in_the_counts():
    calibration = counted([0, 1, 1.0000001, float("nan")], [0, 0, 0, 0], [0, 0, 0, 0])
    assert calibration.pixels[0] == 2
    assert calibration.pixels[-1] == 2
