"""Fit a temperature that calibrates confidence, and measure its effect."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udaseg.evaluation.calibration import Calibration

COLDEST, HOTTEST = 0.05, 20.0
_HALVINGS = 40


@dataclass(frozen=True)
class Trust:
    """Calibration statistics of some labelled pixels.

    Attributes:
        pixels: Number of pixels.
        accuracy: Share of correct pixels.
        confidence: Mean confidence.
        error: Expected calibration error.
        nll: Mean negative log-likelihood of the labels, in nats.
    """

    pixels: int
    accuracy: float
    confidence: float
    error: float
    nll: float


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that maximises the likelihood of the labels in softmax(logits / T).

    The likelihood is concave in 1 / T, so the zero of its slope is found by bisection. If every
    label is predicted correctly there is no zero, and the result is close to `COLDEST`.

    Args:
        logits: (N, K) float, at least one row.
        labels: (N,) class ids; none is ignored.

    Returns:
        T between `COLDEST` and `HOTTEST`.

    Raises:
        ValueError: No rows, or logits that are not finite.

    Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
    Differs: pixels of segmentation maps instead of images; bisection instead of a quasi-Newton
    method, so the result does not depend on a starting point.
    """
    if len(labels) == 0 or not bool(torch.isfinite(logits).all()):
        raise ValueError("a temperature needs at least one pixel, and finite logits")
    rows = logits.float()
    rows = rows - rows.amax(1, keepdim=True)
    label_mean = rows.gather(1, labels.long()[:, None])[:, 0].double().mean()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (rows.div(math.exp(middle)).softmax(1) * rows).sum(1).double().mean()
        # too high a temperature: the expected logit is below the mean logit of the labels, or equal
        # if all labels have the largest logit
        if bool(expected <= label_mean):
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def trust(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Trust:
    """Return the calibration statistics of softmax(logits / temperature).

    Args:
        logits: (N, K) float.
        labels: (N,) class ids; none is ignored.
        temperature: Divisor of the logits.
    """
    log_probabilities = (logits.float() / temperature).log_softmax(1)
    best, winner = log_probabilities.max(1)
    confidence = best.exp().cpu().numpy()
    truth = labels.cpu().numpy().astype(np.uint8)
    predicted = winner.cpu().numpy().astype(np.uint8)
    counts = Calibration.empty()
    # no label is ignored here: 255 is never a class id
    counts.update(confidence, predicted, truth)
    nll = -log_probabilities.gather(1, labels.long()[:, None]).double().mean()
    return Trust(
        pixels=len(labels),
        accuracy=float((predicted == truth).mean()),
        confidence=float(confidence.astype(np.float64).mean()),
        error=counts.error(),
        nll=float(nll),
    )


def logits_at(
    logits: Tensor, size: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Tensor:
    """Return (N, K) logits of some pixels after bilinear enlargement to `size`.

    Only these pixels are computed.

    Args:
        logits: (K, h, w).
        size: (H, W) of the enlarged map; corners are not aligned.
        rows: (N,) below H.
        columns: (N,) below W.
    """
    height, width = logits.shape[-2:]
    upper, lower, down = _between(rows, size[0], height)
    left, right, across = _between(columns, size[1], width)
    down, across = down.to(logits.device), across.to(logits.device)
    above = logits[:, upper, left] * (1 - across) + logits[:, upper, right] * across
    below = logits[:, lower, left] * (1 - across) + logits[:, lower, right] * across
    return (above * (1 - down) + below * down).T


def _between(pixels: NDArray[np.int64], length: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pixel's two neighbouring cells along a side, and the weight of the second."""
    positions = ((pixels + 0.5) * cells / length - 0.5).clip(0, cells - 1)
    first = np.floor(positions).astype(np.int64)
    second = np.minimum(first + 1, cells - 1)
    share = torch.from_numpy((positions - first).astype(np.float32))
    return torch.from_numpy(first), torch.from_numpy(second), share
