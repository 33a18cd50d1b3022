"""How far confidence can be believed: counts by confidence, and the error read off them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 20


@dataclass
class Calibration:
    """Pixels by the confidence of their label, in `BINS` equal steps from 0 to 1.

    Attributes:
        pixels: (BINS,) all pixels.
        labelled: (BINS,) those with truth.
        correct: (BINS,) those of them that are right.
        confidence: (BINS,) sum of the confidence of the labelled ones.
    """

    pixels: NDArray[np.int64]
    labelled: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @classmethod
    def empty(cls) -> "Calibration":
        """Return counts of no pixel."""
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
            truth: (H, W) class ids with `ignore`; None without labels.
            ignore: Truth that is not counted.
        """
        sure = np.nan_to_num(confidence.ravel())  # a diverged network is sure of nothing
        bins = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
        self.pixels += np.bincount(bins, minlength=BINS)
        if truth is None:
            return
        known = truth.ravel() != ignore
        right = known & (labels.ravel() == truth.ravel())
        self.labelled += np.bincount(bins[known], minlength=BINS)
        self.correct += np.bincount(bins[right], minlength=BINS)
        self.confidence += np.bincount(bins[known], sure[known].astype(np.float64), minlength=BINS)

    def error(self) -> float:
        """Return the expected calibration error: the mean gap of confidence and accuracy.

        Each bin weighs as many pixels as it has. NaN without truth.

        Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
        """
        total = int(self.labelled.sum())
        if total == 0:
            return math.nan
        return float(np.abs(self.confidence - self.correct).sum() / total)
