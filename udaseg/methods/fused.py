"""Sums whose gradient is computed in the forward pass, so that no intermediate tensor is stored."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_ROWS_CPU = 4096
_NUMBERS_GPU = 2**25


def with_gradient(total: Tensor, gradient: Tensor, inputs: Tensor, *, once: bool = False) -> Tensor:
    """Return the scalar `total` with a graph in which `inputs` have this gradient.

    Args:
        total: Computed without a graph.
        gradient: Gradient of `total` with respect to `inputs`, of the same shape; float32. It is
            scaled in float32 and becomes the type of the inputs last.
        inputs: What the total was computed from.
        once: Scale the gradient in place: one copy less, but the graph allows one backward pass.
    """
    result: Tensor = _GradientInForward.apply(inputs, total, gradient, once)
    return result


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, total: Tensor, gradient: Tensor, once: bool) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.once = inputs.dtype, once
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient.mul_(grad) if ctx.once else gradient * grad
        return scaled.to(ctx.dtype), None, None, None


@contextlib.contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Compute products on `device` in true float32: without autocast, and without TF32 on a GPU."""
    matmul = torch.backends.cuda.matmul
    # not allow_tf32: reading it fails if the precision was set by its newer name
    before = matmul.fp32_precision
    with torch.autocast(device.type, enabled=False):
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def rows_at_once(width: int, device: torch.device) -> int:
    """Return how many rows to compute at once, if a row has up to `width` numbers.

    On a CPU they fit in the cache. On a GPU, where each operator has to be launched, they fill a
    tensor of 128 MiB.
    """
    return max(1, _NUMBERS_GPU // width) if device.type == "cuda" else _ROWS_CPU
