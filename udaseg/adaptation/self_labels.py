"""Pseudo-labels of a whole dataset: thresholds for each class from one streaming pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from udaseg.data import IGNORE

BINS = 10_000


class ConfidenceHistograms:
    """How confident a network is where it predicts each class, in constant memory.

    Args:
        num_classes: K.

    Attributes:
        counts: (K, BINS) int64; bin b holds confidences in [b / BINS, (b + 1) / BINS).
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64)

    def add(self, labels: Tensor, confidence: Tensor) -> None:
        """Count the pixels of an image.

        Args:
            labels: Integer, a class; any shape.
            confidence: In [0, 1], the same shape.
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
        """Return for each class the lower edge of its quantile's bin (K,); 0 if never predicted."""
        reached = self.counts.cumsum(1)
        total = reached[:, -1]
        # the smallest bin that holds the quantile's rank, counted as the lower median is
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
    """Return `labels` where the confidence reaches the class's threshold, elsewhere `IGNORE`.

    Args:
        labels: Integer, a class; any shape.
        confidence: In [0, 1], the same shape.
        thresholds: (K,).
    """
    limits = torch.as_tensor(thresholds, dtype=torch.float64, device=labels.device)
    sure = confidence.double() >= limits[labels.long()]
    return labels.masked_fill(~sure, IGNORE)
