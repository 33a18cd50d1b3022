"""From images to label maps: windows, flips, scales, and full-size labels in little memory."""

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
    """Return (K, h, w), what `predict_batch` says of one image (1, 3, H, W)."""
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
    """Return logits, or with flips, scales or windows the mean of what each look says.

    Args:
        model: The network in evaluation mode.
        images: (N, 3, H, W) float RGB in [0, 1].
        window: (height, width) of a sliding window; None looks at the whole image.
        overlap: Share of a window that its neighbour sees too.
        flip: Also look at the mirrored image.
        scales: Sizes to look at, relative to the image.

    Returns:
        (N, K, h, w): the logits of one whole look; else, at full size, the logarithm of the mean
        probability over all looks, which are logits too.
    """
    if window is None and not flip and tuple(scales) == (1.0,):
        logits: Tensor = model(images).logits.float()
        return logits
    size = (images.shape[-2], images.shape[-1])
    total: Tensor | None = None
    looks = 0
    for scale in scales:
        scaled = images
        if scale != 1.0:
            wanted = tuple(max(1, round(side * scale)) for side in size)
            scaled = F.interpolate(images, wanted, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            look = scaled.flip(-1) if mirrored else scaled
            seen = _windowed(model, look, window, overlap)
            seen = seen.flip(-1) if mirrored else seen
            if seen.shape[-2:] != size:
                seen = F.interpolate(seen, size, mode="bilinear", align_corners=False)
            total = seen if total is None else total.add_(seen)
            looks += 1
    assert total is not None
    # logarithms of probabilities are logits again, so that all that follows is the same
    return total.div_(looks).clamp_min_(1e-12).log_()


def windows(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> Iterator[tuple[slice, slice]]:
    """Yield windows that cover every pixel of `size`, the last ones flush with the border."""
    starts = []
    for side, part in zip(size, window, strict=True):
        part = min(part, side)
        stride = max(1, round(part * (1 - overlap)))
        last = side - part
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
    """Return (N, K, H, W) probabilities of one look at the images."""
    size = (images.shape[-2], images.shape[-1])
    if window is None:
        return _probabilities(model, images)
    total: Tensor | None = None
    weight = torch.zeros(size, device=images.device)
    for rows, columns in windows(size, window, overlap):
        seen = _probabilities(model, images[..., rows, columns])
        if total is None:
            total = seen.new_zeros((*seen.shape[:2], *size))
        total[..., rows, columns] += seen
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
    """Return the most probable class of each pixel at `size`, and its probability when asked.

    On a CPU one class at a time is enlarged and compared with the best so far, a band of rows at a
    time, so the memory beside the result is that of a few bands instead of K planes.

    Args:
        logits: (K, h, w) float; enlarged bilinearly.
        size: (H, W) of the result.
        confidence: Also return the softmax of the winner.
        temperature: What logits are divided by for the confidence; labels do not depend on it.
        align_corners: Enlarge so that the outermost cells lie on the border, as some releases do;
            all planes at once, for sizes of their kind.

    Returns:
        Labels (H, W) uint8 and confidence (H, W) float32 or None.
    """
    on_device = logits.is_cuda and len(logits) * size[0] * size[1] <= _MOST_ON_DEVICE
    if on_device or align_corners:
        try:
            return _label_at_once(
                *(logits, size),
                confidence=confidence,
                temperature=temperature,
                align_corners=align_corners,
            )
        except torch.OutOfMemoryError:
            if align_corners:
                raise
    # also what did not fit on a GPU, out of the handler so that it is let go of
    planes = logits.float().cpu().contiguous().numpy()
    best = np.zeros(size, np.uint8)
    sure = np.empty(size, np.float32) if confidence else None
    for rows in _bands(size[0]):
        share = None if sure is None else sure[rows]
        _label_band(planes, size, rows, best[rows], share, temperature)
    return best, sure


def _label_at_once(
    logits: Tensor,
    size: tuple[int, int],
    *,
    confidence: bool,
    temperature: float,
    align_corners: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Do as `labels_from_logits` does with all planes enlarged, where the logits are."""
    wide = F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=align_corners)
    top, winner = wide[0].max(0)
    shares = None
    if confidence:
        total = (wide[0] - top).div_(temperature).exp_().sum(0)
        shares = total.reciprocal_().cpu().numpy()
    return winner.to(torch.uint8).cpu().numpy(), shares


def _bands(height: int) -> Iterator[slice]:
    for start in range(0, height, _BAND_PX):
        yield slice(start, min(start + _BAND_PX, height))


def _label_band(
    planes: NDArray[np.float32],
    size: tuple[int, int],
    rows: slice,
    best: NDArray[np.uint8],
    sure: NDArray[np.float32] | None,
    temperature: float,
) -> None:
    """Fill some rows of the labels and the confidence, one class after another.

    A band is enlarged downwards by the two rows around each of its own, then sideways by OpenCV;
    the planes that are compared stay in the processor's cache.

    Args:
        planes: (K, h, w) logits.
        size: (H, W) of the whole result.
        rows: Which of the H rows.
        best: (rows, W) zeros, filled with labels.
        sure: (rows, W), filled with probabilities.
        temperature: Of these probabilities.
    """
    classes, height, width = planes.shape
    place = (np.arange(rows.start, rows.stop) + 0.5) * height / size[0] - 0.5
    place = place.clip(0, height - 1)
    above = np.floor(place).astype(np.intp)
    below = np.minimum(above + 1, height - 1)
    share = (place - above).astype(np.float32)[:, None]
    top = np.empty(0, np.float32)
    total = np.ones(best.shape, np.float32)
    for number in range(classes):
        plane = planes[number]
        wide = plane[above]
        if height != size[0]:
            wide += (plane[below] - wide) * share
        if width != size[1]:
            enlarged = cv2.resize(wide, (size[1], len(wide)), interpolation=cv2.INTER_LINEAR)
            wide = np.asarray(enlarged, np.float32)
        if number == 0:
            top = wide
            continue
        wins = wide > top
        if sure is not None:
            # the sum of exponentials is kept relative to the best so far
            shrink = np.exp(np.abs(wide - top) * np.float32(-1 / temperature))
            total = np.where(wins, total * shrink + 1, total + shrink)
        np.maximum(top, wide, out=top)
        # numbers rise, so the larger of two is the later winner
        np.maximum(best, wins.view(np.uint8) * np.uint8(number), out=best)
    if sure is not None:
        np.reciprocal(total, out=sure)
