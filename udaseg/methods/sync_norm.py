"""Batch norms over the images of all ranks, so that N processes normalise as one would.

A norm exchanges its sums with the other ranks once in the forward and once in the backward pass,
through a process group of its own, and never waits for a GPU. torch's SyncBatchNorm waits three
times, because it allows ranks without images.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from udaseg import distributed


def sync_batch_norms(module: nn.Module) -> None:
    """Make each batch norm in `module` use batch statistics over all ranks, in place.

    Names, parameters, buffers and the behaviour in evaluation mode do not change. All ranks must
    call it together, and hold the same number of images.
    """
    distributed.norm_group()  # before a forward pass, which one rank may run alone
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            kind: Any = type(part)
            part.__class__ = _synced_class(kind)


@functools.cache
def _synced_class(base: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    """Return a subclass of a batch norm class that keeps everything else the class does."""
    return type(f"{base.__name__}OverRanks", (_OverRanks, base), {})


class _OverRanks(nn.BatchNorm2d):
    def forward(self, images: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(images)
        mean = variance = None
        step = 0.0
        if self.track_running_stats:
            mean, variance, step = self.running_mean, self.running_var, _count_batch(self)
        arguments = (images, self.weight, self.bias, mean, variance, step, self.eps)
        if torch.compiler.is_compiling():
            output = _normalise_compiled(*arguments)
        else:
            output = _Normalise.apply(*arguments)
        # batch norms of timm end in an activation
        for name in ("drop", "act"):
            if (layer := getattr(self, name, None)) is not None:
                output = layer(output)
        return output


def _count_batch(norm: nn.BatchNorm2d) -> float:
    """Return the weight of this batch in the running statistics; count it if `norm` counts."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.momentum is not None:
        return norm.momentum
    assert norm.num_batches_tracked is not None
    return 1 / float(norm.num_batches_tracked)


class _Normalise(torch.autograd.Function):
    """(B, C, H, W) images normalised over all ranks; updates the running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        images, kernels = _dense(images), _kernels(images)
        local = torch.cat(kernels.batch_norm_stats(images, eps))
        means, invstds = distributed.all_gather_in_norm(local).chunk(2, 1)
        pixels, whole_pixels = _pixel_counts(
            images.numel() // images.shape[1], len(means), local.dtype, local.device
        )
        mean, invstd = kernels.batch_norm_gather_stats_with_counts(
            local, means, invstds, running_mean, running_var, momentum, eps, pixels
        )
        ctx.save_for_backward(images, weight, mean, invstd, whole_pixels)
        output: Tensor = kernels.batch_norm_elemt(images, weight, bias, mean, invstd, eps)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, invstd, pixels = ctx.saved_tensors
        grad, kernels, needed = _dense(grad), _kernels(images), ctx.needs_input_grad
        *sums, weight_grad, bias_grad = kernels.batch_norm_backward_reduce(
            grad, images, mean, invstd, weight, *needed[:3]
        )
        images_grad = None
        if needed[0]:
            both = torch.cat(sums)
            distributed.all_reduce_in_norm(both)
            images_grad = kernels.batch_norm_backward_elemt(
                grad, images, mean, invstd, weight, *both.chunk(2), pixels
            )
        # DistributedDataParallel sums the gradients of weight and bias
        return (
            images_grad,
            weight_grad if needed[1] else None,
            bias_grad if needed[2] else None,
            *[None] * 4,
        )


def _dense(images: Tensor) -> Tensor:
    """Return images in a memory layout that the kernels take."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images
    return images.contiguous()


@functools.lru_cache(maxsize=64)
def _pixel_counts(
    count: int, ranks: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the pixels on each rank, (R,), for the forward and for the backward pass."""
    counts = torch.full((ranks,), count, dtype=dtype, device=device)
    return counts, counts.to(torch.int32)


def _normalise_compiled(
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Do what `_Normalise` does, by operators that a compiler can fuse with those around it."""
    wide = _wide(images)
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    means, variances = _gather(torch.cat([mean, variance])).chunk(2, 1)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    if running_mean is not None and running_var is not None:
        pixels = len(means) * images.numel() // images.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (pixels / (pixels - 1)), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    output = (wide - _channels(mean)) * _channels(scale)
    return (output if bias is None else output + _channels(bias)).to(images.dtype)


# Operators that a compiler does not look into, so that the exchange does not end its graph.
@torch.library.custom_op("udaseg::gather_in_norm", mutates_args=())
def _gather(value: Tensor) -> Tensor:
    return distributed.all_gather_in_norm(value)


@torch.library.custom_op("udaseg::sum_in_norm", mutates_args=())
def _sum(value: Tensor) -> Tensor:
    total = value.contiguous().clone()
    distributed.all_reduce_in_norm(total)
    return total


_gather.register_fake(lambda value: value.new_empty(distributed.world_size(), len(value)))
_sum.register_fake(lambda value: value.new_empty(value.shape))
_gather.register_autograd(lambda _, grad: _sum(grad)[distributed.rank()])


class _PlainKernels:
    """The kernels of a batch norm that torch has for CUDA only, with the same arguments.

    `invstd` is 1 / sqrt(variance + eps).
    """

    @staticmethod
    def batch_norm_stats(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return mean and invstd of each channel on this rank, (C,)."""
        variance, mean = torch.var_mean(_wide(images), (0, 2, 3), correction=0)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def batch_norm_gather_stats_with_counts(
        _: Tensor,
        means: Tensor,
        invstds: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return mean and invstd (C,) over R ranks from theirs, (R, C); update the running ones."""
        total = counts.sum()
        shares = (counts / total).unsqueeze(1)
        mean = (shares * means).sum(0)
        variances = invstds.square().reciprocal() - eps
        variance = (shares * (variances + (means - mean).square())).sum(0)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (total / (total - 1)), momentum)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def batch_norm_elemt(
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        _: float,
    ) -> Tensor:
        """Return the normalised images."""
        scale = invstd if weight is None else invstd * weight
        output = (_wide(images) - _channels(mean)) * _channels(scale)
        return (output if bias is None else output + _channels(bias)).to(images.dtype)

    @staticmethod
    def batch_norm_backward_reduce(
        grad: Tensor, images: Tensor, mean: Tensor, invstd: Tensor, *_: object
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the sums (C,) that the gradients are made of, and those of weight and bias."""
        grad_sum = _wide(grad).sum((0, 2, 3))
        product_sum = (_wide(grad) * (_wide(images) - _channels(mean))).sum((0, 2, 3))
        return grad_sum, product_sum, product_sum * invstd, grad_sum

    @staticmethod
    def batch_norm_backward_elemt(
        grad: Tensor,
        images: Tensor,
        mean: Tensor,
        invstd: Tensor,
        weight: Tensor | None,
        grad_sum: Tensor,
        product_sum: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """Return the gradient of the images; the sums are those of all ranks."""
        total = counts.sum()
        scale = invstd if weight is None else invstd * weight
        slope = invstd.square() * product_sum / total
        along = (_wide(images) - _channels(mean)) * _channels(slope)
        result = (_wide(grad) - _channels(grad_sum / total) - along) * _channels(scale)
        return result.to(images.dtype)


def _kernels(images: Tensor) -> Any:
    return torch if images.is_cuda else _PlainKernels


def _wide(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _channels(values: Tensor) -> Tensor:
    """Return (C,) values as (1, C, 1, 1)."""
    return values.view(1, -1, 1, 1)
