"""Logits of images: sliding windows, flips and scales."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Any]
"""Maps (N, 3, H, W) images to something with `.logits` (N, K, h, w)."""


def predict_logits(model: Network, image: Tensor) -> Tensor:
    """Return the network's logits (K, h, w) of one whole image (1, 3, H, W)."""
    return predict_batch(model, image).squeeze(0)


@torch.no_grad()
def predict_batch(
    model: Network,
    images: Tensor,
    *,
    window: tuple[int, int] | None = None,
    overlap: float = 1 / 3,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    align_corners: bool = False,
) -> Tensor:
    """Return logits; with flips, scales or windows, of the mean probability over all views.

    Args:
        model: The network in evaluation mode.
        images: (N, 3, H, W) float RGB in [0, 1].
        window: (height, width) of a sliding window; None predicts the whole image.
        overlap: Share of a window that overlaps with its neighbour.
        flip: Also predict the mirrored image.
        scales: Image scales to predict at, relative to the image.
        align_corners: How the logits of a view are enlarged; see `Segmenter`.

    Returns:
        (N, K, h, w): for a single view, the network's logits; otherwise, at full size, the
            logarithm of the mean probability over all views, which is again a logit.
    """
    if window is None and not flip and tuple(scales) == (1.0,):
        logits: Tensor = model(images).logits.float()
        return logits
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        scaled = _resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))
        for mirrored in (False, True) if flip else (False,):
            view = scaled.flip(-1) if mirrored else scaled
            probabilities = _windowed_probabilities(model, view, window, overlap, align_corners)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            probabilities = _resize(probabilities, (height, width))
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    num_views = len(scales) * (2 if flip else 1)
    # logarithms of probabilities are valid logits, so callers need no second case
    return total.div_(num_views).clamp_min_(1e-12).log_()


def windows(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> Iterator[tuple[slice, ...]]:
    """Return (rows, columns) of windows that cover `size`; the last ones end at the border."""
    sections = []
    for side, length in zip(size, window, strict=True):
        length = min(length, side)
        stride = max(1, round(length * (1 - overlap)))
        starts = [*range(0, side - length, stride), side - length]
        sections.append([slice(start, start + length) for start in starts])
    return product(*sections)


def _windowed_probabilities(
    model: Network,
    images: Tensor,
    window: tuple[int, int] | None,
    overlap: float,
    align_corners: bool,
) -> Tensor:
    """Return (N, K, H, W) probabilities of one view of the images."""
    if window is None:
        return _probabilities(model, images, align_corners)
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    weight = torch.zeros(size, device=images.device)
    for rows, columns in windows(size, window, overlap):
        probabilities = _probabilities(model, images[..., rows, columns], align_corners)
        if total is None:
            total = probabilities.new_zeros((*probabilities.shape[:2], *size))
        total[..., rows, columns] += probabilities
        weight[rows, columns] += 1
    assert total is not None
    return total.div_(weight)


def _probabilities(model: Network, images: Tensor, align_corners: bool) -> Tensor:
    logits = _resize(model(images).logits.float(), images.shape[-2:], align_corners)
    return torch.softmax(logits, 1)


def _resize(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)
