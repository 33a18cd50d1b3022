"""Losses and pseudo-labels at label resolution, computed in strips that fit in the cache.

Logits are upsampled along the width first, while there are few rows. Each strip of rows is then
upsampled, read and dropped, so no tensor of size B x K x H x W exists.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import mean_divisor

_STRIP_ROWS_CPU = 16
_STRIP_ROWS_GPU = 512


def pixel_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    mean_over: Literal["labelled", "all"] = "labelled",
) -> Tensor:
    """Return the mean cross-entropy over labelled pixels, at the labels' resolution.

    Args:
        logits: (B, K, h, w); upsampled bilinearly to the size of the labels.
        labels: (B, H, W) integer, a class or `IGNORE`.
        weights: (B, H, W) in [0, 1]; the mean is not divided by them, so low weights give a low
            loss.
        mean_over: `all` divides by the number of all pixels, `IGNORE` included.

    Returns:
        A scalar; 0 with a graph when no pixel is labelled.

    Raises:
        ValueError: The sizes do not match.
    """
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(f"{logits.shape[0]} logit maps but {labels.shape[0]} label maps")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)} but labels {tuple(labels.shape)}")
    height, width = labels.shape[-2:]
    wide = F.interpolate(
        logits.float(), (logits.shape[-2], width), mode="bilinear", align_corners=False
    )
    total: Tensor = _StripCrossEntropy.apply(wide, labels, weights, height)
    count = (
        (labels != IGNORE).sum()
        if mean_over == "labelled"
        else torch.full_like(total, labels.numel())
    )
    return total / mean_divisor(count)


@torch.no_grad()
def pseudo_labels(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the most probable class of each pixel and its probability.

    Args:
        logits: (B, K, h, w).
        size: (H, W) of the result.

    Returns:
        Labels (B, H, W) uint8 and confidence (B, H, W) float32 in [0, 1].
    """
    height, width = size
    wide = F.interpolate(
        logits.float(), (logits.shape[-2], width), mode="bilinear", align_corners=False
    )
    batch = logits.shape[0]
    labels = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    confidence = torch.empty((batch, height, width), device=logits.device)
    for rows, _, _, strip in _strips(wide, height):
        top, best = strip.max(1)
        labels[:, rows] = best.to(torch.uint8)
        confidence[:, rows] = strip.sub_(top[:, None]).exp_().sum(1).reciprocal_()
    return labels, confidence


def row_weights(height: int, low: int, device: torch.device) -> Tensor:
    """Return the (height, low) matrix that upsamples rows bilinearly, corners not aligned."""
    rows = torch.eye(low, device=device)[None, None]
    return F.interpolate(rows, (height, low), mode="bilinear", align_corners=False)[0, 0]


def _strips(wide: Tensor, height: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield (output rows, input rows, weights (r, n), upsampled strip (B, K, r, W))."""
    low = wide.shape[-2]
    matrix = row_weights(height, low, wide.device)
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


class _StripCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies; the gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, wide: Tensor, labels: Tensor, weights: Tensor | None, height: int
    ) -> Tensor:
        """Return the sum over labelled pixels of `weights` times the cross-entropy."""
        wide = wide.detach()
        gradient = torch.zeros_like(wide)
        total = wide.new_zeros(())
        for rows, inputs, matrix, strip in _strips(wide, height):
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
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits; the other inputs have none."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None
