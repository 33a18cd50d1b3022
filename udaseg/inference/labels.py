"""Full-size label maps from logits, in little memory."""

import contextlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udaseg.errors import NotFiniteError

_BAND_ROWS = 64
_MAX_DEVICE_VALUES = 2**29  # values enlarged at once on a GPU: 2 GiB


def refuse_not_finite(logits: Tensor, name: str) -> None:
    """Raise a `NotFiniteError` if an output of the network of that name is NaN or infinite."""
    if not bool(torch.stack(torch.aminmax(logits)).isfinite().all()):
        raise NotFiniteError(name, "outputs")


@torch.no_grad()
def labels_from_logits(
    logits: Tensor,
    size: tuple[int, int],
    *,
    confidence: bool = False,
    temperature: float = 1.0,
    align_corners: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return the most probable class of each pixel at `size`, and optionally its probability.

    On a CPU, one class at a time is enlarged and compared with the best so far, a band of rows at a
    time. Apart from the result, memory then holds a few bands instead of K planes.

    Args:
        logits: (K, h, w) float; enlarged bilinearly.
        size: (H, W) of the result.
        confidence: Also return the softmax of the best class, (H, W) float32.
        temperature: Divisor of the logits for the confidence; labels do not depend on it.
        align_corners: Enlarge so that the outermost cells lie on the outermost pixels.

    Raises:
        NotFiniteError: A logit is NaN or infinite.
    """
    refuse_not_finite(logits, "the network")
    on_device = logits.is_cuda and len(logits) * size[0] * size[1] <= _MAX_DEVICE_VALUES
    if on_device:
        with contextlib.suppress(torch.OutOfMemoryError):
            return _labels_at_once(
                logits,
                size,
                confidence=confidence,
                temperature=temperature,
                align_corners=align_corners,
            )
    # also after a GPU out-of-memory error
    planes = logits.float().cpu().contiguous().numpy()
    labels = np.zeros(size, np.uint8)
    probabilities = np.empty(size, np.float32) if confidence else None
    for rows in bands(size[0], _BAND_ROWS):
        enlarged = _enlarged_planes(planes, rows, size, align_corners)
        band = None if probabilities is None else probabilities[rows]
        _fill_band(enlarged, labels[rows], band, temperature)
    return labels, probabilities


def bands(height: int, rows: int) -> Iterator[slice]:
    """Yield slices of a few rows, for what would not fit in memory for a whole large picture."""
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _labels_at_once(
    logits: Tensor,
    size: tuple[int, int],
    *,
    confidence: bool,
    temperature: float,
    align_corners: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Compute `labels_from_logits` with all planes enlarged at once, on the logits' device."""
    (enlarged,) = F.interpolate(
        logits[None].float(), size, mode="bilinear", align_corners=align_corners
    )
    top, winner = enlarged.max(0)
    probabilities = None
    if confidence:
        total = (enlarged - top).div_(temperature).exp_().sum(0)
        probabilities = total.reciprocal_().cpu().numpy()
    return winner.to(torch.uint8).cpu().numpy(), probabilities


def _enlarged_planes(
    planes: NDArray[np.float32], rows: slice, size: tuple[int, int], align_corners: bool
) -> Iterator[NDArray[np.float32]]:
    """Yield some rows of each plane (h, w), enlarged to `size`.

    A band is enlarged vertically from the two nearest rows, then horizontally, by OpenCV unless
    corners are aligned.
    """
    (height, width), (low_height, low_width) = size, planes.shape[1:]
    band = np.arange(rows.start, rows.stop)
    above, below, down = _neighbours(band, height, low_height, align_corners)
    left, right, across = _neighbours(np.arange(width), width, low_width, align_corners)
    for plane in planes:
        enlarged = plane[above]
        if low_height != height:
            enlarged += (plane[below] - enlarged) * down[:, None]
        if low_width != width and align_corners:
            first = enlarged[:, left]
            enlarged = first + (enlarged[:, right] - first) * across
        elif low_width != width:
            resized = cv2.resize(enlarged, (width, len(enlarged)), interpolation=cv2.INTER_LINEAR)
            enlarged = np.asarray(resized, np.float32)
        yield enlarged


def _fill_band(
    planes: Iterable[NDArray[np.float32]],
    best: NDArray[np.uint8],
    probabilities: NDArray[np.float32] | None,
    temperature: float,
) -> None:
    """Fill labels (zeros so far) and probabilities, one class after another.

    The compared planes stay in the processor's cache.
    """
    top = np.empty(0, np.float32)
    total = np.ones(best.shape, np.float32)
    for number, enlarged in enumerate(planes):
        if number == 0:
            top = enlarged
            continue
        wins = enlarged > top
        if probabilities is not None:
            # the sum of exponentials is relative to the best logit so far
            shrink = np.exp(np.abs(enlarged - top) * np.float32(-1 / temperature))
            total = np.where(wins, total * shrink + 1, total + shrink)
        np.maximum(top, enlarged, out=top)
        # class numbers increase, so the maximum is the most recent best class
        np.maximum(best, wins.view(np.uint8) * np.uint8(number), out=best)
    if probabilities is not None:
        np.reciprocal(total, out=probabilities)


def logits_at(
    logits: Tensor,
    size: tuple[int, int],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Return (N, K) logits of some pixels after bilinear enlargement to `size`.

    Only these pixels are computed.

    Args:
        logits: (K, h, w).
        size: (H, W) of the enlarged map.
        rows: (N,) below H.
        columns: (N,) below W.
        align_corners: As in `labels_from_logits`.
    """
    height, width = logits.shape[-2:]
    vertical = _neighbours(rows, size[0], height, align_corners)
    horizontal = _neighbours(columns, size[1], width, align_corners)
    upper, lower, down = map(torch.from_numpy, vertical)
    left, right, across = map(torch.from_numpy, horizontal)
    down, across = down.to(logits.device), across.to(logits.device)
    above = logits[:, upper, left] * (1 - across) + logits[:, upper, right] * across
    below = logits[:, lower, left] * (1 - across) + logits[:, lower, right] * across
    return (above * (1 - down) + below * down).T


def _neighbours(
    pixels: NDArray[np.int64], length: int, cells: int, align_corners: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return each pixel's two neighbouring cells along a side, and the weight of the second."""
    if align_corners:
        positions = pixels * ((cells - 1) / max(1, length - 1))
    else:
        positions = ((pixels + 0.5) * cells / length - 0.5).clip(0, cells - 1)
    first = np.floor(positions).astype(np.int64)
    return first, np.minimum(first + 1, cells - 1), (positions - first).astype(np.float32)
