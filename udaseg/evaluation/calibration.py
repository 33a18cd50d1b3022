"""Measure how reliable confidence is: pixel counts by confidence, and the calibration error."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 20


@dataclass
class Calibration:
    """Pixel counts by the confidence of the label, in `BINS` equal steps from 0 to 1.

    Attributes:
        pixels: (BINS,) all pixels.
        labelled: (BINS,) pixels with truth.
        correct: (BINS,) labelled pixels that are predicted correctly.
        confidence: (BINS,) sum of the confidence of the labelled pixels.
    """

    pixels: NDArray[np.int64]
    labelled: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @classmethod
    def empty(cls) -> "Calibration":
        """Return counts of zero pixels."""
        pixels, labelled, correct = np.zeros((3, BINS), np.int64)
        return cls(pixels, labelled, correct, np.zeros(BINS))

    def update(
        self,
        confidence: NDArray[np.float32],
        labels: NDArray[np.uint8],
        truth: NDArray[np.uint8] | None,
        *,
        ignore: int = 255,
    ) -> None:
        """Count one image.

        Args:
            confidence: (H, W) in [0, 1].
            labels: (H, W) class ids.
            truth: (H, W) class ids with `ignore`; None if there are no labels.
            ignore: Truth id that is not counted.
        """
        # a diverged network has NaN confidence; count it as 0
        values = np.nan_to_num(confidence.ravel())
        bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        if truth is None:
            return
        has_truth = truth.ravel() != ignore
        is_correct = has_truth & (labels.ravel() == truth.ravel())
        self.labelled += np.bincount(bins[has_truth], minlength=BINS)
        self.correct += np.bincount(bins[is_correct], minlength=BINS)
        self.confidence += np.bincount(
            bins[has_truth], values[has_truth].astype(np.float64), minlength=BINS
        )

    def error(self) -> float:
        """Return the expected calibration error: the mean gap between confidence and accuracy.

        Bins are weighted by their number of pixels. NaN without truth.

        Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
        """
        total = int(self.labelled.sum())
        if total == 0:
            return math.nan
        return float(np.abs(self.confidence - self.correct).sum() / total)
