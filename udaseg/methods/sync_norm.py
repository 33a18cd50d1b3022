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
    bases = (_OverRanks, base, nn.SyncBatchNorm) if on_gpu else (_OverRanks, base)
    return type(f"{base.__name__}OverRanks", bases, {})


class _OverRanks(nn.BatchNorm2d):
    process_group = None  # for SyncBatchNorm: all ranks

    # communication between ranks stays out of compiled graphs
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
    def forward(self, images: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(images)
        if isinstance(self, nn.SyncBatchNorm):
            output = nn.SyncBatchNorm.forward(self, images)
        else:
            output = _normalise(self, images)
        # batch norms of timm end in an activation
        for name in ("drop", "act"):
            if (layer := getattr(self, name, None)) is not None:
                output = layer(output)
        return output


def _normalise(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Return (B, C, H, W) images normalised over all ranks; update the running statistics."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    mean: Tensor = _MeanOverRanks.apply(wide.mean((0, 2, 3)))
    centred = wide - mean.view(1, -1, 1, 1)
    # around the mean of all ranks: E[x^2] - E[x]^2 would lose the digits of a small variance
    variance: Tensor = _MeanOverRanks.apply(centred.square().mean((0, 2, 3)))
    if norm.track_running_stats and norm.running_mean is not None:
        count = world_size() * wide.numel() // wide.shape[1]
        _update_running_statistics(norm, mean.detach(), variance.detach(), count)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    output = centred * scale.view(1, -1, 1, 1)
    if norm.bias is not None:
        output = output + norm.bias.view(1, -1, 1, 1)
    return output.to(images.dtype)


@torch.no_grad()
def _update_running_statistics(
    norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int
) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    step = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, step)
    norm.running_var.lerp_(variance * (count / max(1, count - 1)), step)


class _MeanOverRanks(torch.autograd.Function):
    """The mean over all ranks, whose gradient is the mean over all ranks too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return all_reduce_mean(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004 (torch's contract)
        return all_reduce_mean(grad)
