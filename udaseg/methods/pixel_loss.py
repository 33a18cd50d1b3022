"""Losses and pseudo-labels at label resolution, computed in strips that fit in the cache.

Logits are upsampled along the width first, while there are few rows. Each strip of rows is then
upsampled, read and dropped, so no tensor of size B x K x H x W exists on a CPU. On a GPU, where
each operator has to be launched, a strip is high. Both directions are products, forward and
backward, so nothing depends on the order of atomic additions.
"""

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from udaseg.data.labels.classes import IGNORE
from udaseg.distributed import all_reduce_sum, divisor_of_total
from udaseg.methods.fused import float32_products, with_gradient
from udaseg.models.upsampling import constant, row_weights


class _Step(NamedTuple):
    """How many output rows make a strip, and how many output columns one product."""

    rows: int
    columns: int


_Band = tuple[slice, slice, Tensor]
_STEP_CPU = _Step(16, 256)
_STEP_GPU = _Step(512, 4096)


def pixel_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    mean_over: Literal["labelled", "all"] = "labelled",
    num_labelled: Tensor | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Return the mean cross-entropy over labelled pixels, at the labels' resolution.

    Args:
        logits: (B, K, h, w); upsampled bilinearly to the size of the labels.
        labels: (B, H, W) integer, a class or `IGNORE`.
        weights: (B, H, W) in [0, 1]; the mean is not divided by them, so low weights give a low
            loss.
        mean_over: `all` divides by the number of all pixels, `IGNORE` included.
        num_labelled: `count_labelled` of all ranks; None counts and sums them here.
        align_corners: How the logits are upsampled; see `Segmenter`.

    Returns:
        A scalar; 0 with a graph when no pixel is labelled.

    Raises:
        ValueError: The sizes do not match.
    """
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(f"{logits.shape[0]} logit maps but {labels.shape[0]} label maps")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)} but labels {tuple(labels.shape)}")
    valid = labels != IGNORE
    if mean_over == "all":
        divisor: Tensor | int = labels.numel()
    else:
        if num_labelled is None:
            num_labelled = all_reduce_sum(valid.sum(dtype=torch.float32))
        divisor = divisor_of_total(num_labelled)
    weight = (valid if weights is None else valid * weights) / divisor
    total, gradient = _cross_entropy_sum(logits, labels * valid, weight, align_corners)
    return with_gradient(total, gradient, logits)


def count_labelled(labels: Tensor) -> Tensor:
    """Return the number of pixels of `labels` that have a class."""
    return (labels != IGNORE).sum()


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Return the number of each class in integer labels of any shape, (K,) int64."""
    # compared, not bincount: bincount reads the largest label and waits for the device
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    return (labels.reshape(-1, 1) == classes).sum(0)


@torch.no_grad()
def pseudo_labels(
    logits: Tensor, size: Sequence[int], *, align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the most probable class of each pixel and its probability.

    Logits (B, K, h, w) give labels (B, H, W) uint8 and confidence (B, H, W) float32 in [0, 1].
    `align_corners` says how they are upsampled; see `Segmenter`.
    """
    height, width = size
    shape = logits.shape[0], height, width
    labels = torch.empty(shape, dtype=torch.uint8, device=logits.device)
    confidence = torch.empty(shape, device=logits.device)
    step = _step(logits)
    with float32_products(logits.device):
        columns = _bands(logits.shape[-1], width, step.columns, logits.device, align_corners)
        wide = _widen(logits, width, columns)
        for rows, inputs, matrix in _bands(
            wide.shape[-2], height, step.rows, wide.device, align_corners
        ):
            strip = matrix @ wide[:, :, inputs]
            top, best = strip.max(1)
            labels[:, rows] = best
            torch.reciprocal(strip.sub_(top[:, None]).exp_().sum(1), out=confidence[:, rows])
    return labels, confidence


@torch.no_grad()
def _cross_entropy_sum(
    logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the cross-entropies of all pixels, and its gradient.

    Args:
        logits: (B, K, h, w).
        labels: (B, H, W) integer, a class.
        weight: (B, H, W) float32.
        align_corners: How the logits are upsampled.
    """
    (low_height, low_width), (height, width) = logits.shape[-2:], labels.shape[1:]
    step, device, totals = _step(logits), logits.device, []
    column_bands = partial(_bands, low_width, width, step.columns, device, align_corners)

    def row_gradients() -> Iterator[tuple[slice, Tensor]]:
        wide = _widen(logits, width, column_bands())
        for rows, inputs, matrix in _bands(low_height, height, step.rows, device, align_corners):
            strip = matrix @ wide[:, :, inputs], labels[:, rows], weight[:, rows]
            totals.append(_replace_by_gradient(*strip))
            yield inputs, matrix.T @ strip[0]

    with float32_products(device):
        wide_gradient = _sum_of_bands(row_gradients(), low_height, dim=2)
        gradients = (
            (inputs, wide_gradient[..., columns] @ matrix)
            for columns, inputs, matrix in column_bands()
        )
        gradient = _sum_of_bands(gradients, low_width, dim=3)
    return functools.reduce(operator.add, totals), gradient


def _replace_by_gradient(strip: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum of cross-entropies; overwrite the logits by its gradient.

    The strip of logits is (B, K, r, W), labels and weight are (B, r, W).
    """
    scores = strip.log_softmax(1)
    total = 0 - (scores.gather(1, labels.long()[:, None])[:, 0] * weight).sum()  # -x can be -0
    # a mask, because an addition at indices would be atomic or sorted on a GPU
    classes = _class_numbers(strip.shape[1], strip.device)
    is_label = torch.eq(labels[:, None].float(), classes, out=strip)
    torch.sub(scores.exp_(), is_label, out=strip).mul_(weight[:, None])
    return total


def _step(logits: Tensor) -> _Step:
    return _STEP_GPU if logits.is_cuda else _STEP_CPU


def _bands(
    low: int, high: int, step: int, device: torch.device, align_corners: bool
) -> Iterator[_Band]:
    """Yield (outputs, the inputs that they need, matrix from inputs to outputs)."""
    matrix = row_weights(low, high, device, align_corners)

    def position(output: int) -> float:
        if align_corners:
            return output * (low - 1) / max(1, high - 1)
        return (output + 0.5) * low / high - 0.5

    for start in range(0, high, step):
        outputs = slice(start, min(start + step, high))
        first = max(0, int(position(start)))
        last = min(low, int(position(outputs.stop - 1)) + 2)
        inputs = slice(first, max(last, first + 1))
        yield outputs, inputs, matrix[outputs, inputs]


def _widen(logits: Tensor, width: int, bands: Iterable[_Band]) -> Tensor:
    """Return logits (B, K, h, w) upsampled to (B, K, h, width), float32."""
    narrow = logits.float().reshape(-1, logits.shape[-1])
    wide = narrow.new_empty(len(narrow), width)
    for columns, inputs, matrix in bands:
        torch.mm(narrow[:, inputs], matrix.T, out=wide[:, columns])
    return wide.view(*logits.shape[:-1], width)


def _sum_of_bands(bands: Iterable[tuple[slice, Tensor]], size: int, dim: int) -> Tensor:
    """Return the sum of bands, each at its place along `dim`, which has `size` places."""
    total: Tensor | None = None
    for place, band in bands:
        if total is None and band.shape[dim] == size:
            total = band
            continue
        if total is None:
            total = band.new_zeros(*band.shape[:dim], size, *band.shape[dim + 1 :])
        total.narrow(dim, place.start, band.shape[dim]).add_(band)
    assert total is not None
    return total


@constant
def _class_numbers(count: int, device: torch.device) -> Tensor:
    """Return the numbers of classes as floats, (K, 1, 1)."""
    return torch.arange(count, dtype=torch.float32, device=device)[:, None, None]
