"""Logits of images: sliding windows, flips and scales."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Any]
"""Maps (N, 3, H, W) images to something with `.logits` (N, K, h, w)."""


def predict_logits(
    model: Network,
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
    model: Network,
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
            probabilities = _windowed_probabilities(model, view, window, overlap)
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


def _windowed_probabilities(
    model: Network, images: Tensor, window: tuple[int, int] | None, overlap: float
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


def _probabilities(model: Network, images: Tensor) -> Tensor:
    logits = model(images).logits.float()
    size = images.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return torch.softmax(logits, 1)
