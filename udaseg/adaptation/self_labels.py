"""Pseudo-labels of a whole dataset: class thresholds from one streaming pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from udaseg.data import IGNORE

BINS = 10_000


class ConfidenceHistograms:
    """Histograms of a network's confidence for each predicted class, in constant memory.

    Attributes:
        counts: (K, BINS) int64; bin b counts confidences in [b / BINS, (b + 1) / BINS).
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64)

    def add(self, labels: Tensor, confidence: Tensor) -> None:
        """Add the pixels of an image.

        Args:
            labels: Integer classes of any shape.
            confidence: Values in [0, 1] of the same shape.
        """
        if labels.shape != confidence.shape:
            shapes = tuple(labels.shape), tuple(confidence.shape)
            raise ValueError(f"labels {shapes[0]} but confidence {shapes[1]}")
        bins = (confidence.flatten() * BINS).long().clamp_(0, BINS - 1)
        slots = labels.flatten().long() * BINS + bins
        self.counts += (
            torch.bincount(slots, minlength=self.counts.numel())
            .view_as(self.counts)
            .to(self.counts.device)
        )

    def quantiles(self, quantile: float) -> Tensor:
        """Return the lower edge of the quantile's bin for each class (K,); 0 if never predicted."""
        reached = self.counts.cumsum(1)
        total = reached[:, -1]
        # the smallest bin that holds the rank of the quantile, rounded down as for a lower median
        rank = ((total - 1).clamp_min(0).double() * quantile).floor().long()
        bins = (reached <= rank[:, None]).sum(1).clamp_max(BINS - 1)
        return torch.where(total > 0, bins.double() / BINS, 0.0)

    def thresholds(self, *, quantile: float, cap: float) -> Tensor:
        """Return min(quantile, cap) of each class, (K,) float64.

        Reference:
            Xie et al., SPCL (2021), pseudo-labels: median and 0.9.
        """
        return self.quantiles(quantile).clamp_max(cap)


def kept_labels(labels: Tensor, confidence: Tensor, thresholds: Tensor | Sequence[float]) -> Tensor:
    """Return `labels`, with `IGNORE` where the confidence is below the threshold of the class.

    Args:
        labels: Integer classes of any shape.
        confidence: Values in [0, 1] of the same shape.
        thresholds: (K,).
    """
    limits = torch.as_tensor(thresholds, dtype=torch.float64, device=labels.device)
    confident = confidence.double() >= limits[labels.long()]
    return labels.masked_fill(~confident, IGNORE)
