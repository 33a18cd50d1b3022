"""Temperature scaling: one number that brings confidence to accuracy, and how far it does."""

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
    """How far confidence can be believed on some labelled pixels.

    Attributes:
        pixels: How many.
        accuracy: Share of them that is right.
        confidence: Their mean confidence.
        error: Expected calibration error.
        nll: Mean negative log-likelihood of their labels, in nats.
    """

    pixels: int
    accuracy: float
    confidence: float
    error: float
    nll: float


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T at which softmax(logits / T) makes the labels most likely.

    The likelihood is concave in 1 / T, so the place where its slope is zero is found by halving.
    Where every label is right there is none, and the result is a temperature near the coldest.

    Args:
        logits: (N, K) float, at least one row.
        labels: (N,) class ids; none is ignored.

    Returns:
        T between `COLDEST` and `HOTTEST`.

    Raises:
        ValueError: No rows, or logits that are not finite.

    Reference: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
    Differs: pixels of segmentation maps instead of images; halving instead of a quasi-Newton
    method, so that the result depends on no starting point.
    """
    if len(labels) == 0 or not bool(torch.isfinite(logits).all()):
        raise ValueError("a temperature needs at least one pixel, and finite logits")
    rows = logits.float()
    rows = rows - rows.amax(1, keepdim=True)
    meant = rows.gather(1, labels.long()[:, None])[:, 0].double().mean()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (rows.div(math.exp(middle)).softmax(1) * rows).sum(1).double().mean()
        # too hot: the softmax expects less than the labels have, or all that there is
        if bool(expected <= meant):
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


def trust(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Trust:
    """Return how far the softmax of logits / temperature can be believed.

    Args:
        logits: (N, K) float.
        labels: (N,) class ids; none is ignored.
        temperature: What logits are divided by.
    """
    spread = (logits.float() / temperature).log_softmax(1)
    best, winner = spread.max(1)
    confidence = best.exp().cpu().numpy()
    truth = labels.cpu().numpy().astype(np.uint8)
    guessed = winner.cpu().numpy().astype(np.uint8)
    counts = Calibration.empty()
    # no label is ignored here: 255 cannot be a class id of a label image
    counts.update(confidence, guessed, truth)
    nll = -spread.gather(1, labels.long()[:, None]).double().mean()
    return Trust(
        pixels=len(labels),
        accuracy=float((guessed == truth).mean()),
        confidence=float(confidence.astype(np.float64).mean()),
        error=counts.error(),
        nll=float(nll),
    )


def logits_at(
    logits: Tensor, size: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Tensor:
    """Return (N, K) logits of some pixels of the map that bilinear enlargement to `size` gives.

    Only these pixels are computed.

    Args:
        logits: (K, h, w).
        size: (H, W) of the enlarged map; corners not aligned.
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


def _between(places: NDArray[np.int64], wide: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two cells around each pixel of an enlarged side, and the share of the second."""
    at = ((places + 0.5) * cells / wide - 0.5).clip(0, cells - 1)
    first = np.floor(at).astype(np.int64)
    second = np.minimum(first + 1, cells - 1)
    share = torch.from_numpy((at - first).astype(np.float32))
    return torch.from_numpy(first), torch.from_numpy(second), share
