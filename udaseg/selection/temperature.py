"""Fit a temperature that calibrates confidence, and measure its effect."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udaseg.data.labels.classes import IGNORE

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_BISECTION_STEPS = 40
BINS = 20


@dataclass(frozen=True)
class CalibrationStatistics:
    """Means over some labelled pixels.

    Attributes:
        pixels: Their number.
        error: Expected calibration error.
        nll: Negative log-likelihood of the labels, in nats.
    """

    pixels: int
    accuracy: float
    confidence: float
    error: float
    nll: float


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that maximises the likelihood of the labels in softmax(logits / T).

    The likelihood is concave in 1 / T, so bisection finds the zero of its slope. If every
    label is predicted correctly there is no zero, and the result is close to `MIN_TEMPERATURE`.

    Args:
        logits: (N, K), at least one row, finite.
        labels: (N,) class ids; none is ignored.

    Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
    Differs: pixels of segmentation maps instead of images; bisection instead of a quasi-Newton
    method, so the result does not depend on a starting point.
    """
    rows = logits.float()
    rows = rows - rows.amax(1, keepdim=True)
    label_mean = rows.gather(1, labels.long()[:, None])[:, 0].double().mean()
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        expected = (rows.div(math.exp(middle)).softmax(1) * rows).sum(1).double().mean()
        # too high a temperature: the expected logit is below the mean logit of the labels, or equal
        # if all labels have the largest logit
        low, high = (low, middle) if bool(expected <= label_mean) else (middle, high)
    return math.exp((low + high) / 2)


def confidence_error(
    logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> CalibrationStatistics:
    """Return the statistics of softmax(logits / temperature); labels as in `fit_temperature`."""
    log_probabilities = (logits.float() / temperature).log_softmax(1)
    best, winner = log_probabilities.max(1)
    confidence = best.exp().cpu().numpy()
    truth = labels.cpu().numpy().astype(np.uint8)
    predicted = winner.cpu().numpy().astype(np.uint8)
    counts = ConfidenceHistogram()
    counts.update(confidence, predicted, truth)
    nll = -log_probabilities.gather(1, labels.long()[:, None]).double().mean()
    return CalibrationStatistics(
        pixels=len(labels),
        accuracy=float((predicted == truth).mean()),
        confidence=float(confidence.astype(np.float64).mean()),
        error=counts.expected_calibration_error(),
        nll=float(nll),
    )


class ConfidenceHistogram:
    """Pixel counts by the confidence of the label, in `BINS` equal steps from 0 to 1.

    Attributes:
        pixels: (BINS,) all pixels.
        labelled: (BINS,) pixels with truth.
        correct: (BINS,) labelled pixels that are predicted correctly.
        confidence: (BINS,) sum of the confidence of the labelled pixels.
    """

    def __init__(self) -> None:
        self.pixels, self.labelled, self.correct = np.zeros((3, BINS), np.int64)
        self.confidence = np.zeros(BINS)

    def update(
        self,
        confidence: NDArray[np.float32],
        labels: NDArray[np.uint8],
        truth: NDArray[np.uint8] | None,
    ) -> None:
        """Count one image, or any pixels, given as arrays of equal shape.

        Args:
            confidence: In [0, 1].
            labels: Class ids.
            truth: Class ids with `IGNORE`; None if there are no labels.
        """
        # a diverged network has NaN confidence; count it as 0
        values = np.nan_to_num(confidence.ravel())
        bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        if truth is None:
            return
        has_truth = truth.ravel() != IGNORE
        is_correct = has_truth & (labels.ravel() == truth.ravel())
        self.labelled += np.bincount(bins[has_truth], minlength=BINS)
        self.correct += np.bincount(bins[is_correct], minlength=BINS)
        self.confidence += np.bincount(
            bins[has_truth], values[has_truth].astype(np.float64), minlength=BINS
        )

    def expected_calibration_error(self) -> float:
        """Return the mean gap between confidence and accuracy, by pixels; NaN without truth.

        Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
        """
        total = int(self.labelled.sum())
        return float(np.abs(self.confidence - self.correct).sum() / total) if total else math.nan
