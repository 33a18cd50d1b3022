"""The paired bootstrap against loops over single images, and what it says of simple cases."""

import math

import numpy as np
import pytest

from udaseg.experiments.bootstrap import RESAMPLES, interval, mean_of_classes, resampled_iou
from udaseg.runs.image_counts import ImageCounts

IMAGES, CLASSES = 7, 3


def counts(seed):
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(0, 9, (IMAGES, CLASSES))
    truth[1:, 2] = 0  # the last class is in the first image only
    right = rng.integers(0, truth + 1)
    wrong = rng.integers(0, 5, truth.shape)
    names = tuple(map(str, range(IMAGES)))
    return ImageCounts(names, ("a", "b", "c"), right, truth + wrong, truth)


def test_a_resample_pools_the_pixels_of_its_images():
    groups = [[counts(0), counts(1)], [counts(2)]]
    drawn = resampled_iou(groups)
    assert [iou.shape for iou in drawn] == [(RESAMPLES, CLASSES)] * 2
    # the rule: as many images as there are, with replacement, the same for every run
    times = np.random.default_rng(0).multinomial(IMAGES, [1 / IMAGES] * IMAGES, 100)
    for resample in (0, 17, 99):
        for iou, runs in zip(drawn, groups, strict=True):
            for number in range(CLASSES):
                values = []
                for run in runs:
                    inside = sum(times[resample][i] * run.intersection[i][number] for i in range(7))
                    union = sum(times[resample][i] * run.union[i][number] for i in range(7))
                    true = sum(times[resample][i] * run.truth[i][number] for i in range(7))
                    values.append(inside / union if true else math.nan)
                expected = sum(values) / len(values)
                assert iou[resample, number] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(drawn[0][:, 2]).any()
    assert np.array_equal(np.isnan(drawn[0]), np.isnan(drawn[1]))


def test_the_mean_is_over_measured_classes():
    table = np.array([[0.5, math.nan], [math.nan, math.nan], [0.2, 0.4]])
    assert mean_of_classes(table).tolist() == pytest.approx([0.5, math.nan, 0.3], nan_ok=True)


def test_the_interval_holds_19_of_20_values():
    assert interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    assert interval(np.array([math.nan, 0.5])) == (0.5, 0.5)
    assert interval(np.array([math.nan])) is None


def test_the_interval_of_a_mean_is_about_as_wide_as_theory_says():
    """IoU of one class with unions of equal size is a mean; its error is known."""
    rng = np.random.default_rng(3)
    images = 400
    right = rng.binomial(100, 0.5, (images, 1))
    full = np.full((images, 1), 100)
    names = tuple(map(str, range(images)))
    (drawn,) = resampled_iou([[ImageCounts(names, ("a",), right, full, full)]])
    low, high = interval(drawn[:, 0])
    error = (right / 100).std() / math.sqrt(images)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < right.mean() / 100 < high
