"""Losses and pseudo-labels at label resolution, computed in strips that fit in the cache.

Logits are upsampled along the width first, while there are few rows. Each strip of rows is then
upsampled, read and dropped, so no tensor of size B x K x H x W exists.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_reduce_sum, divisor_of_total
from udaseg.methods.fused import with_gradient

_STRIP_ROWS_CPU = 16
_STRIP_ROWS_GPU = 512


def pixel_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    mean_over: Literal["labelled", "all"] = "labelled",
    num_labelled: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy over labelled pixels, at the labels' resolution.

    Args:
        logits: (B, K, h, w); upsampled bilinearly to the size of the labels.
        labels: (B, H, W) integer, a class or `IGNORE`.
        weights: (B, H, W) in [0, 1]; the mean is not divided by them, so low weights give a low
            loss.
        mean_over: `all` divides by the number of all pixels, `IGNORE` included.
        num_labelled: `count_labelled` of all ranks; None counts and sums them here.

    Returns:
        A scalar; 0 with a graph when no pixel is labelled.

    Raises:
        ValueError: The sizes do not match.
    """
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(f"{logits.shape[0]} logit maps but {labels.shape[0]} label maps")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)} but labels {tuple(labels.shape)}")
    wide = _upsample_width(logits, labels.shape[-1])
    total = with_gradient(*_strip_cross_entropy(wide, labels, weights), wide)
    if mean_over == "all":
        return total / labels.numel()
    if num_labelled is None:
        num_labelled = all_reduce_sum(count_labelled(labels))
    return total / divisor_of_total(num_labelled)


def count_labelled(labels: Tensor) -> Tensor:
    """Return the number of pixels of `labels` that have a class."""
    return (labels != IGNORE).sum()


@torch.no_grad()
def pseudo_labels(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the most probable class of each pixel and its probability.

    Logits (B, K, h, w) give labels (B, H, W) uint8 and confidence (B, H, W) float32 in [0, 1].
    """
    height, width = size
    shape = logits.shape[0], height, width
    labels = torch.empty(shape, dtype=torch.uint8, device=logits.device)
    confidence = torch.empty(shape, device=logits.device)
    for rows, _, _, strip in _strips(_upsample_width(logits, width), height):
        top, best = strip.max(1)
        labels[:, rows] = best.to(torch.uint8)
        confidence[:, rows] = strip.sub_(top[:, None]).exp_().sum(1).reciprocal_()
    return labels, confidence


def _upsample_width(logits: Tensor, width: int) -> Tensor:
    size = logits.shape[-2], width
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def _strips(wide: Tensor, height: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield (output rows, input rows, weights (r, n), upsampled strip (B, K, r, W))."""
    low = wide.shape[-2]
    # the (height, low) matrix that upsamples rows
    identity = torch.eye(low, device=wide.device)[None, None]
    matrix = F.interpolate(identity, (height, low), mode="bilinear", align_corners=False)[0, 0]
    step = _STRIP_ROWS_GPU if wide.is_cuda else _STRIP_ROWS_CPU
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        first = max(0, int((start + 0.5) * low / height - 0.5))
        last = min(low, int((rows.stop - 0.5) * low / height - 0.5) + 2)
        inputs = slice(first, max(last, first + 1))
        weights = matrix[rows, inputs]
        # float32 even under autocast: these become probabilities
        with torch.autocast(wide.device.type, enabled=False):
            strip = weights @ wide[:, :, inputs]
        yield rows, inputs, weights, strip


@torch.no_grad()
def _strip_cross_entropy(
    wide: Tensor, labels: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the cross-entropies of labelled pixels, and its gradient."""
    gradient = torch.zeros_like(wide)
    total = wide.new_zeros(())
    for rows, inputs, matrix, strip in _strips(wide, labels.shape[1]):
        label = labels[:, rows].long()
        valid = label != IGNORE
        label = label.masked_fill(~valid, 0)[:, None]
        weight = valid.float() if weights is None else weights[:, rows] * valid
        strip = strip.sub_(strip.amax(1, keepdim=True))
        label_score = strip.gather(1, label)[:, 0]
        shares = strip.exp_()
        normaliser = shares.sum(1)
        total = total + ((normaliser.log() - label_score) * weight).sum()
        shares.mul_((weight / normaliser)[:, None])
        shares.scatter_add_(1, label, -weight[:, None])
        with torch.autocast(wide.device.type, enabled=False):
            gradient[:, :, inputs] += matrix.T @ shares
    return total, gradient
