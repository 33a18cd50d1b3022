"""Batch norms over the images of all ranks, so that N processes normalise as one would."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from udaseg.distributed import all_reduce_mean, world_size


def sync_batch_norms(module: nn.Module) -> None:
    """Make each batch norm in `module` use batch statistics over all ranks, in place.

    Names, parameters, buffers and the behaviour in evaluation mode do not change. Every rank must
    hold the same number of images. On a GPU this is torch's SyncBatchNorm; torch has none for the
    CPU, so the CPU version is implemented here.

    Args:
        module: Already on its device.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            on_gpu = part.running_mean is not None and part.running_mean.is_cuda
            kind: Any = type(part)
            part.__class__ = _synced_class(kind, on_gpu)


@functools.cache
def _synced_class(base: type[nn.BatchNorm2d], on_gpu: bool) -> type[nn.BatchNorm2d]:
    """Return a subclass of a batch norm class that keeps everything else the class does."""
    normalise = nn.SyncBatchNorm.forward if on_gpu else _normalise

    def forward(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
        if not norm.training or world_size() == 1:
            output: Tensor = base.forward(norm, images)
            return output
        output = normalise(norm, images)  # type: ignore[arg-type]  # it is a SyncBatchNorm too
        # batch norms of timm end in an activation
        for name in ("drop", "act"):
            if (layer := getattr(norm, name, None)) is not None:
                output = layer(output)
        return output

    bases = (base, nn.SyncBatchNorm) if on_gpu else (base,)
    # communication between ranks stays out of compiled graphs; process_group None means all ranks
    uncompiled: Any = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]  # torch's own
    body = {"forward": uncompiled, "process_group": None}
    return type(f"{base.__name__}OverRanks", bases, body)


def _normalise(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Return (B, C, H, W) images normalised over all ranks; update the running statistics."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    mean = _differentiable_mean(wide.mean((0, 2, 3)))
    centred = wide - mean.view(1, -1, 1, 1)
    # around the mean of all ranks: E[x^2] - E[x]^2 would lose the digits of a small variance
    variance = _differentiable_mean(centred.square().mean((0, 2, 3)))
    if norm.track_running_stats and norm.running_mean is not None:
        _update_running_statistics(
            norm, mean.detach(), variance.detach(), wide.numel() // wide.shape[1]
        )
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    output = centred * scale.view(1, -1, 1, 1)
    if norm.bias is not None:
        output = output + norm.bias.view(1, -1, 1, 1)
    return output.to(images.dtype)


@torch.no_grad()
def _update_running_statistics(
    norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, rank_count: int
) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    step = norm.momentum
    if step is None:
        step = 1 / float(norm.num_batches_tracked)
    count = rank_count * world_size()
    norm.running_mean.lerp_(mean, step)
    norm.running_var.lerp_(variance * (count / max(1, count - 1)), step)


def _differentiable_mean(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks; the gradient is the mean over all ranks too."""
    mean: Tensor = _DifferentiableMean.apply(value)
    return mean


class _DifferentiableMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return all_reduce_mean(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return all_reduce_mean(grad)
