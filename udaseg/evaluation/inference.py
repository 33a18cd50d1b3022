"""Predict label maps: windows, flips, scales, and full-size labels with little memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Model = Callable[[Tensor], Any]
"""Maps (N, 3, H, W) images to something with `.logits` (N, K, h, w)."""

_BAND_PX = 64
_MOST_ON_DEVICE = 2**29  # values enlarged at once on a GPU: 2 GiB


def predict_logits(
    model: Model,
    image: Tensor,
    *,
    window: tuple[int, int] | None = None,
    overlap: float = 1 / 3,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Return (K, h, w), the result of `predict_batch` for one image (1, 3, H, W)."""
    return predict_batch(
        model, image, window=window, overlap=overlap, flip=flip, scales=scales
    ).squeeze(0)


@torch.no_grad()
def predict_batch(
    model: Model,
    images: Tensor,
    *,
    window: tuple[int, int] | None = None,
    overlap: float = 1 / 3,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Return logits; with flips, scales or windows, of the mean probability over all views.

    Args:
        model: The network in evaluation mode.
        images: (N, 3, H, W) float RGB in [0, 1].
        window: (height, width) of a sliding window; None predicts the whole image.
        overlap: Share of a window that overlaps with its neighbour.
        flip: Also predict the mirrored image.
        scales: Image scales to predict at, relative to the image.

    Returns:
        (N, K, h, w): for a single view, the network's logits; otherwise, at full size, the
            logarithm of the mean probability over all views, which is again a logit.
    """
    if window is None and not flip and tuple(scales) == (1.0,):
        logits: Tensor = model(images).logits.float()
        return logits
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    num_views = 0
    for scale in scales:
        scaled = images
        if scale != 1.0:
            scaled_size = tuple(max(1, round(side * scale)) for side in size)
            scaled = F.interpolate(images, scaled_size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            view = scaled.flip(-1) if mirrored else scaled
            probabilities = _windowed(model, view, window, overlap)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            if probabilities.shape[-2:] != size:
                probabilities = F.interpolate(
                    probabilities, size, mode="bilinear", align_corners=False
                )
            total = probabilities if total is None else total.add_(probabilities)
            num_views += 1
    assert total is not None
    # logarithms of probabilities are valid logits, so callers need no second case
    return total.div_(num_views).clamp_min_(1e-12).log_()


def windows(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> Iterator[tuple[slice, slice]]:
    """Yield windows that cover every pixel of `size`; the last ones end at the border."""
    starts = []
    for side, length in zip(size, window, strict=True):
        length = min(length, side)
        stride = max(1, round(length * (1 - overlap)))
        last = side - length
        starts.append([*range(0, last, stride), last])
    for top in starts[0]:
        for left in starts[1]:
            yield (
                slice(top, top + min(window[0], size[0])),
                slice(left, left + min(window[1], size[1])),
            )


def _windowed(
    model: Model, images: Tensor, window: tuple[int, int] | None, overlap: float
) -> Tensor:
    """Return (N, K, H, W) probabilities of one view of the images."""
    size = (images.shape[-2], images.shape[-1])
    if window is None:
        return _probabilities(model, images)
    total: Tensor | None = None
    weight = torch.zeros(size, device=images.device)
    for rows, columns in windows(size, window, overlap):
        probabilities = _probabilities(model, images[..., rows, columns])
        if total is None:
            total = probabilities.new_zeros((*probabilities.shape[:2], *size))
        total[..., rows, columns] += probabilities
        weight[rows, columns] += 1
    assert total is not None
    return total.div_(weight)


def _probabilities(model: Model, images: Tensor) -> Tensor:
    logits = model(images).logits.float()
    size = images.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return torch.softmax(logits, 1)


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
        confidence: Also return the softmax of the best class.
        temperature: Divisor of the logits for the confidence; labels do not depend on it.
        align_corners: Enlarge so that the outermost cells lie on the border, as some releases do.
            All planes are enlarged at once, which suits the small sizes of those releases.

    Returns:
        Labels (H, W) uint8, and confidence (H, W) float32 or None.
    """
    on_device = logits.is_cuda and len(logits) * size[0] * size[1] <= _MOST_ON_DEVICE
    if on_device or align_corners:
        try:
            return _label_at_once(
                logits,
                size,
                confidence=confidence,
                temperature=temperature,
                align_corners=align_corners,
            )
        except torch.OutOfMemoryError:
            if align_corners:
                raise
    # also after a GPU out-of-memory error; outside the handler, so that its tensors are freed
    planes = logits.float().cpu().contiguous().numpy()
    best = np.zeros(size, np.uint8)
    probabilities = np.empty(size, np.float32) if confidence else None
    for rows in _bands(size[0]):
        band_probabilities = None if probabilities is None else probabilities[rows]
        _label_band(planes, size, rows, best[rows], band_probabilities, temperature)
    return best, probabilities


def _label_at_once(
    logits: Tensor,
    size: tuple[int, int],
    *,
    confidence: bool,
    temperature: float,
    align_corners: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Compute `labels_from_logits` with all planes enlarged at once, on the logits' device."""
    enlarged = F.interpolate(
        logits[None].float(), size, mode="bilinear", align_corners=align_corners
    )
    top, winner = enlarged[0].max(0)
    probabilities = None
    if confidence:
        total = (enlarged[0] - top).div_(temperature).exp_().sum(0)
        probabilities = total.reciprocal_().cpu().numpy()
    return winner.to(torch.uint8).cpu().numpy(), probabilities


def _bands(height: int) -> Iterator[slice]:
    for start in range(0, height, _BAND_PX):
        yield slice(start, min(start + _BAND_PX, height))


def _label_band(
    planes: NDArray[np.float32],
    size: tuple[int, int],
    rows: slice,
    best: NDArray[np.uint8],
    probabilities: NDArray[np.float32] | None,
    temperature: float,
) -> None:
    """Fill some rows of the labels and the confidence, one class after another.

    A band is enlarged vertically from the two nearest rows, then horizontally by OpenCV; the
    compared planes stay in the processor's cache.

    Args:
        planes: (K, h, w) logits.
        size: (H, W) of the whole result.
        rows: Slice of the H rows.
        best: (rows, W) zeros, filled with labels.
        probabilities: (rows, W), filled with probabilities.
        temperature: Temperature of these probabilities.
    """
    classes, height, width = planes.shape
    positions = (np.arange(rows.start, rows.stop) + 0.5) * height / size[0] - 0.5
    positions = positions.clip(0, height - 1)
    above = np.floor(positions).astype(np.intp)
    below = np.minimum(above + 1, height - 1)
    fractions = (positions - above).astype(np.float32)[:, None]
    top = np.empty(0, np.float32)
    total = np.ones(best.shape, np.float32)
    for number in range(classes):
        plane = planes[number]
        enlarged = plane[above]
        if height != size[0]:
            enlarged += (plane[below] - enlarged) * fractions
        if width != size[1]:
            resized = cv2.resize(enlarged, (size[1], len(enlarged)), interpolation=cv2.INTER_LINEAR)
            enlarged = np.asarray(resized, np.float32)
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
