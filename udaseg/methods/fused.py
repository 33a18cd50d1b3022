"""Sums whose gradient is computed in the forward pass, so that no intermediate tensor is stored."""

from typing import Any

import torch
from torch import Tensor


def with_gradient(total: Tensor, gradient: Tensor, inputs: Tensor, *, once: bool = False) -> Tensor:
    """Return the scalar `total` with a graph in which `inputs` have this gradient.

    Args:
        total: Computed without a graph.
        gradient: Gradient of `total` with respect to `inputs`, of the same shape.
        inputs: What the total was computed from.
        once: Scale the gradient in place: one copy less, but the graph allows one backward pass.
    """
    result: Tensor = _GradientInForward.apply(inputs, total, gradient.to(inputs.dtype), once)
    return result


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, total: Tensor, gradient: Tensor, once: bool) -> Tensor:  # noqa: ARG004 (torch's contract)
        ctx.save_for_backward(gradient)
        ctx.once = once
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient.mul_(grad) if ctx.once else gradient * grad.to(gradient.dtype)
        return scaled, None, None, None
