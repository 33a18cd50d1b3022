"""Batch norms that see the images of all ranks, so that N processes normalise as one would."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.distributed import mean_over_ranks, world_size


def norms_over_ranks(module: nn.Module) -> None:
    """Let each batch norm in `module` take the batch's statistics over all ranks, in place.

    Names, parameters and buffers stay as they are, and so does what a norm does in evaluation.
    Every rank must hold equally many images. On a GPU this is torch's SyncBatchNorm; a CPU, for
    which torch has none, gets the same written out.

    Args:
        module: On its device.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            on_gpu = part.running_mean is not None and part.running_mean.is_cuda
            kind: Any = type(part)
            part.__class__ = _over_ranks(kind, on_gpu)


@functools.cache
def _over_ranks(own: type[nn.BatchNorm2d], on_gpu: bool) -> type[nn.BatchNorm2d]:
    """Return a subclass of a kind of batch norm that keeps what the kind does beside."""
    normalise = nn.SyncBatchNorm.forward if on_gpu else _normalised

    def forward(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
        if not norm.training or world_size() == 1:
            found: Tensor = own.forward(norm, images)
            return found
        found = normalise(norm, images)  # type: ignore[arg-type]  # it is a SyncBatchNorm too
        # timm's norms end in an activation
        for name in ("drop", "act"):
            if (after := getattr(norm, name, None)) is not None:
                found = after(found)
        return found

    bases = (own, nn.SyncBatchNorm) if on_gpu else (own,)
    # what ranks say to each other is no part of a compiled graph; None is torch's word for all
    apart: Any = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]  # torch's own
    body = {"forward": apart, "process_group": None}
    return type(f"{own.__name__}OverRanks", bases, body)


def _normalised(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Return (B, C, H, W) images normalised by all ranks' batch; the running statistics follow."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    mean = _mean_of_all(wide.mean((0, 2, 3)))
    centred = wide - mean.view(1, -1, 1, 1)
    # from the mean of all: in E[x^2] - E[x]^2 a small variance would lose its digits
    variance = _mean_of_all(centred.square().mean((0, 2, 3)))
    if norm.track_running_stats and norm.running_mean is not None:
        _follow(norm, mean.detach(), variance.detach(), wide.numel() // wide.shape[1])
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    found = centred * scale.view(1, -1, 1, 1)
    if norm.bias is not None:
        found = found + norm.bias.view(1, -1, 1, 1)
    return found.to(images.dtype)


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, own_count: int) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    step = norm.momentum
    if step is None:
        step = 1 / float(norm.num_batches_tracked)
    count = own_count * world_size()
    norm.running_mean.lerp_(mean, step)
    norm.running_var.lerp_(variance * (count / max(1, count - 1)), step)


def _mean_of_all(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks; its gradient is the mean of all ranks' too."""
    mean: Tensor = _MeanOverRanks.apply(value)
    return mean


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return mean_over_ranks(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return mean_over_ranks(grad)
